// The score over the steps: a picture, a sentence, and a table of the numbers.

import { make } from "./elements.js";

const WIDTH = 360, HEIGHT = 170, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 26;

/** Some three to five round numbers between `low` and `high`. */
export function ticks(low, high) {
  const raw = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((by) => by * unit).find((by) => by >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(Number(at.toPrecision(6)));
  return found;
}

const round = (value) => Number(value.toPrecision(4));

/** A sentence about each of the climbs { name: scores }. */
export function sentence(climbs) {
  return Object.entries(climbs)
    .map(([name, scores]) => `${name}: ${round(scores[0])} → ${round(scores.at(-1))} after ${scores.length - 1} step${scores.length === 2 ? "" : "s"}`)
    .join("; ");
}

/** Draws { name: scores }, over `steps` in all, into the figure's svg, sentence and table. */
export function drawCurve({ svg, words, table }, climbs, steps) {
  const all = Object.values(climbs).flat();
  let low = Math.min(...all), high = Math.max(...all);
  if (high - low < 1e-6 * Math.max(1, Math.abs(high))) [low, high] = [low - 1, high + 1];
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / Math.max(1, steps);
  const y = (score) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (score - low)) / (high - low);
  const parts = [];
  for (const tick of ticks(low, high)) {
    parts.push(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }), make("text", { class: "end", x: LEFT - 7, y: y(tick) + 3.5 }, String(tick)));
  }
  const across = steps <= 5 ? [...Array(steps + 1).keys()] : ticks(0, steps).filter(Number.isInteger);
  for (const tick of across) parts.push(make("text", { class: "middle", x: x(tick), y: HEIGHT - 8 }, String(tick)));
  for (const [name, scores] of Object.entries(climbs)) {
    const d = scores.map((score, step) => `${step ? "L" : "M"}${x(step).toFixed(1)} ${y(score).toFixed(1)}`).join("");
    parts.push(make("path", { class: `score ${name}`, d }));
    if (scores.length <= 21) scores.forEach((score, step) => parts.push(make("circle", { class: `score ${name}`, cx: x(step), cy: y(score), r: 2.6 })));
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.replaceChildren(...parts);
  words.textContent = sentence(climbs);
  svg.setAttribute("aria-label", `Score of the class over the steps. ${words.textContent}`);
  const names = Object.keys(climbs), longest = Math.max(...names.map((name) => climbs[name].length));
  const head = make("tr", {}, ...["step", ...names].map((name) => make("th", { scope: "col" }, name)));
  const rows = Array.from({ length: longest }, (_, step) =>
    make("tr", {}, make("th", { scope: "row" }, String(step)), ...names.map((name) => make("td", {}, step in climbs[name] ? String(round(climbs[name][step])) : ""))));
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}
