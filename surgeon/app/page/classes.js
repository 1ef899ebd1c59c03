// A class, searched for by name or index: a combobox with a list, as the ARIA practices describe it.

import { make } from "./elements.js";

export const named = (index, label) => `${index} - ${label}`;

/** Indices of the labels that hold every word of `text`, best first: the index itself, a beginning, a word's, any. */
export function search(labels, text) {
  const words = text.toLowerCase().split(/[\s,–-]+/).filter(Boolean);
  const ranked = [];
  labels.forEach((label, index) => {
    const lower = label.toLowerCase(), number = String(index);
    const fits = words.every((word) => lower.includes(word) || number.startsWith(word));
    if (!fits) return;
    const [first] = words;
    const rank = !first ? 0 : number === first ? 0 : lower.startsWith(first) ? 1 : lower.split(/[\s-]+/).some((word) => word.startsWith(first)) ? 2 : 3;
    ranked.push([rank, index]);
  });
  return ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, index]) => index);
}

export class Classes {
  /** Around an input and a list of the page; `changed(index)` is called when the user has chosen one. */
  constructor(input, list, changed) {
    Object.assign(this, { input, list, changed, labels: [], chosen: null, shown: [], active: -1 });
    input.addEventListener("input", () => this.open(search(this.labels, input.value), 0));
    input.addEventListener("click", () => this.openAll());
    input.addEventListener("focus", () => input.select());
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // the input keeps the focus
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.pick(Number(option.dataset.index));
    });
  }

  /** The class shown as chosen; null is none. */
  show(index) {
    this.chosen = index;
    this.input.value = index === null ? "" : named(index, this.labels[index]);
  }

  openAll() {
    if (!this.isOpen) this.open([...this.labels.keys()], this.chosen ?? 0);
  }

  get isOpen() {
    return !this.list.hidden;
  }

  open(indices, active) {
    this.shown = indices;
    const options = indices.map((index, place) =>
      make("li", { role: "option", id: `class-${place}`, "data-index": index, "aria-selected": "false" }, make("span", { class: "index" }, String(index)), ` ${this.labels[index]}`));
    this.list.replaceChildren(...(options.length ? options : [make("li", { class: "none" }, "No class has that name")]));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.move(options.length ? active : -1);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.show(this.chosen);
  }

  move(place) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = place;
    const option = place < 0 ? null : this.list.children[place];
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  pick(index) {
    this.chosen = index;
    this.close();
    this.changed(index);
  }

  key(event) {
    const last = this.shown.length - 1;
    const to = { ArrowDown: this.active + 1, ArrowUp: this.active - 1, PageDown: this.active + 10, PageUp: this.active - 10 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      if (!this.isOpen) this.openAll();
      else if (last >= 0) this.move(Math.min(last, Math.max(0, to)));
    } else if (event.key === "Enter" && this.isOpen) {
      event.preventDefault();
      if (this.active >= 0) this.pick(this.shown[this.active]);
    } else if (event.key === "Escape" && this.isOpen) {
      event.preventDefault();
      this.close();
      this.input.select();
    }
  }
}
