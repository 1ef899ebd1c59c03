// The five most probable classes, as bars; each is a button that makes it the class to climb to.

import { make, percent } from "./elements.js";

/** A list of `top` under `heading`; `kind` colours it, `target` is the class that is climbed to. */
export function bars(heading, kind, top, labels, target, choose) {
  const rows = top.map(({ index, probability }) => {
    const fill = make("span", { class: "fill" });
    fill.style.width = `${(100 * probability).toFixed(2)}%`;
    const chosen = index === target;
    return make("li", {},
      make("button", { type: "button", class: chosen ? "bar chosen" : "bar", title: `Climb towards ${labels[index]}`, "aria-pressed": String(chosen), click: () => choose(index) },
        make("span", { class: "name" }, labels[index]), make("span", { class: "share" }, percent(probability)), make("span", { class: "track" }, fill)));
  });
  return make("section", { class: `bars ${kind}` }, make("h3", {}, heading), make("ol", {}, ...rows));
}
