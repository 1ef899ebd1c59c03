// A slider and a number that say the same.

import { make } from "./elements.js";
import { placeOf, valueAt, within } from "./settings.js";

const FINE = 1000; // places of a slider

export class Dial {
  /** `changed(value)` is called when the user has set another value. `note` stands under the label. */
  constructor(dial, note, changed) {
    this.dial = dial;
    const id = `dial-${dial.name}`;
    this.number = make("input", { type: "number", id, inputmode: "decimal", step: dial.whole ? 1 : "any", change: () => this.typed(), "aria-describedby": `${id}-note` });
    this.slider = make("input", { type: "range", min: 0, max: FINE, step: 1, "aria-label": dial.label, input: () => this.slid(), change: () => changed(this.value) });
    this.note = make("small", { id: `${id}-note` }, note);
    this.element = make("div", { class: "dial" }, make("label", { for: id }, dial.label), this.number, this.slider, this.note);
    this.changed = changed;
    if (dial.name === "radius") {
      this.free = make("input", { type: "checkbox", change: () => { this.show(this.free.checked ? null : this.kept); changed(this.value); } });
      this.element.append(make("label", { class: "free" }, this.free, " none"));
    }
  }

  /** The model's limits; the value follows. */
  limit(limits, value) {
    this.limits = limits;
    this.number.min = limits[0];
    if (limits[1] !== null) this.number.max = limits[1];
    this.kept = this.dial.top / 10;
    this.show(value);
  }

  get top() {
    return Math.min(this.limits[1] ?? Infinity, Math.max(this.dial.top, this.limits[0] * 10));
  }

  /** Shows `value`; null is none, where a dial has that. */
  show(value) {
    this.value = value;
    const none = value === null;
    this.number.disabled = this.slider.disabled = none;
    if (this.free) this.free.checked = none;
    this.number.value = none ? "" : value;
    if (none) return;
    this.kept = value;
    this.slider.value = Math.round(FINE * placeOf(value, this.limits[0], this.top));
    this.told();
  }

  told() {
    this.slider.setAttribute("aria-valuetext", String(this.value));
    this.slider.style.setProperty("--share", `${(100 * this.slider.value) / FINE}%`);
  }

  slid() {
    this.value = this.kept = valueAt(this.slider.value / FINE, this.limits[0], this.top, this.dial.whole);
    this.number.value = this.value;
    this.told();
  }

  typed() {
    this.show(within(this.dial, this.limits, this.number.valueAsNumber) ?? this.value);
    this.changed(this.value);
  }
}
