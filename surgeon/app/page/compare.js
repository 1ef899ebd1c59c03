// Two pictures, one over the other, with a line between them that can be moved.

import { make, paint } from "./elements.js";

export class Compare {
  /** `left` and `right` name what is shown on either side of the line. */
  constructor(left, right) {
    this.under = make("canvas", { "aria-hidden": "true" });
    this.over = make("canvas", { "aria-hidden": "true", class: "over" });
    const slider = make("input", { type: "range", min: 0, max: 100, value: 50, step: 1, "aria-label": `${left} on the left, ${right} on the right: where they meet`, input: () => this.cut(slider.value) });
    this.element = make("div", { class: "compare" }, this.under, this.over, make("span", { class: "line" }), make("span", { class: "tag left" }, left), make("span", { class: "tag right" }, right), slider);
    this.cut(50);
  }

  cut(place) {
    this.element.style.setProperty("--cut", `${place}%`);
  }

  show(left, right, image) {
    paint(this.over, left, image);
    paint(this.under, right, image);
  }
}
