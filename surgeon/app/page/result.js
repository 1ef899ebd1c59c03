// What one climb has come to: its pictures, and how to save them.

import { Compare } from "./compare.js";
import { make, paint, save } from "./elements.js";
import { difference, heat, toPicture } from "./pictures.js";

export class Result {
  /** `stem` gives the start of the files' names. */
  constructor(gate, words, facts, stem) {
    Object.assign(this, { gate, image: facts.image, stem, pixels: {}, title: `${gate[0].toUpperCase()}${gate.slice(1)} gates` });
    this.pullback = make("canvas", { role: "img", "aria-label": `${this.title}: the pullback of the photo` });
    this.changes = new Compare("perturbed", "difference");
    this.photos = new Compare("perturbed", "input");
    this.saves = make("p", { class: "saves" }, "Save ");
    this.state = make("span", { class: "state" });
    this.element = make("article", { class: `result ${gate} looked` },
      make("header", {}, make("h2", {}, this.title), make("span", { class: "state" }, words), this.state),
      make("div", { class: "pictures" },
        figure(this.changes.element, "Perturbed, and what is added"),
        figure(this.photos.element, "Perturbed, and the photo"),
        figure(make("div", { class: "frame" }, this.pullback), "Pullback of the photo")),
      this.saves);
  }

  /** The state after `number` steps of `steps`; the pullback comes with the first. */
  show(input, { number, perturbed, pullback }, steps) {
    const { image } = this, photo = toPicture(input, image);
    if (pullback) {
      this.pixels.pullback = heat(pullback, image);
      paint(this.pullback, this.pixels.pullback, image);
    }
    this.state.textContent = steps ? `step ${number} of ${steps}` : "";
    this.element.classList.toggle("looked", !steps);
    this.pixels.input = photo;
    if (steps) {
      this.pixels.perturbed = toPicture(perturbed, image);
      this.pixels.difference = difference(input, perturbed, image);
      this.changes.show(this.pixels.perturbed, this.pixels.difference, image);
    }
    this.photos.show(this.pixels.perturbed ?? photo, photo, image);
    const kinds = Object.keys(this.pixels).join();
    if (this.offered !== kinds) this.offer(kinds);
  }

  offer(kinds) {
    this.offered = kinds;
    const buttons = ["perturbed", "difference", "pullback", "input"].filter((kind) => kind in this.pixels).map((kind) =>
      make("button", { type: "button", class: "plain", "aria-label": `Save ${kind} of ${this.title.toLowerCase()} as PNG`, click: () => this.save(kind) }, kind));
    this.saves.replaceChildren("Save as PNG: ", ...buttons);
  }

  save(kind) {
    const canvas = make("canvas");
    paint(canvas, this.pixels[kind], this.image);
    canvas.toBlob((blob) => save(blob, `${this.stem()}.${this.gate}.${kind}.png`), "image/png");
  }
}

function figure(picture, caption) {
  return make("figure", {}, picture, make("figcaption", {}, caption));
}
