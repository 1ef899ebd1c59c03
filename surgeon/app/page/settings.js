// What a user chooses, its limits, and the link that restores it.

export const GATES = { soft: "Soft", hard: "Hard", both: "Both" };
export const HARD = 1e-6; // the temperature whose soft gates stand in for hard ones, as in `surgeon figure`

/** The sliders. `top` is where one ends; the number beside it goes on to the limit. */
export const DIALS = [
  { name: "steps", key: "steps", label: "Steps", top: 1000, whole: true, log: true },
  { name: "step_size", key: "size", label: "Step size", top: 200, log: true },
  { name: "radius", key: "radius", label: "Radius", top: 1000, log: true },
  { name: "temperature", key: "T", label: "Temperature", top: 10, log: true },
];

/** `value` within the limits of the dial; null where it is no number. */
export function within(dial, [low, high], value) {
  if (!Number.isFinite(value)) return null;
  const bounded = Math.min(high ?? Infinity, Math.max(low, value));
  return dial.whole ? Math.round(bounded) : bounded;
}

/** The slider's place in [0, 1] for `value`, and back: equal ratios are equal ways. */
export const placeOf = (value, low, top) => Math.min(1, Math.log(value / low) / Math.log(top / low));
export const valueAt = (place, low, top, whole) => {
  const value = low * (top / low) ** place;
  return whole ? Math.round(value) : Number(value.toPrecision(value < 100 ? 2 : 3));
};

/** Settings as a link's hash. */
export function toHash({ model, photo, target, gates, device, values }) {
  const parts = new URLSearchParams({ model });
  if (photo) parts.set("photo", photo);
  if (target !== null) parts.set("class", target);
  parts.set("gates", gates);
  for (const { name, key } of DIALS) parts.set(key, values[name] ?? "none");
  if (device !== "auto") parts.set("device", device);
  return `#${parts}`;
}

/** What a link's hash says, as far as it makes sense; the rest is left out. */
export function fromHash(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, "")), found = { values: {} };
  for (const name of ["model", "photo"]) if (parts.get(name)) found[name] = parts.get(name);
  if (/^\d+$/.test(parts.get("class") ?? "")) found.target = Number(parts.get("class"));
  if (parts.get("gates") in GATES) found.gates = parts.get("gates");
  if (["auto", "webgpu", "wasm"].includes(parts.get("device"))) found.device = parts.get("device");
  for (const { name, key } of DIALS) {
    const text = parts.get(key);
    if (name === "radius" && text === "none") found.values[name] = null;
    else if (text && Number.isFinite(Number(text))) found.values[name] = Number(text);
  }
  return found;
}

/** What the worker runs: each gate's name and temperature. `fixed`: not a factor of each gate's own. */
export function climbs(gates, temperature, own = "soft") {
  const soft = { gate: own, temperature: { value: temperature } };
  const hard = { gate: "hard", temperature: { value: HARD, fixed: true } };
  return { soft: [soft], hard: [hard], both: [soft, hard] }[gates];
}

const quoted = (text) => (/^[\w.+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The same on the command line; nothing where each gate's own temperature is multiplied, which no option does. */
export function command({ model, photo, target, values }, facts, gate) {
  if (gate !== "hard" && facts.temperatures && values.temperature !== 1) return "";
  const parts = ["surgeon run", model, quoted(photo ?? "PHOTO"), `--target ${target}`, `--steps ${values.steps}`];
  parts.push(`--step-size ${values.step_size}`, `--radius ${values.radius ?? "inf"}`);
  if (gate === "hard" && facts.hardens) parts.push(`--temperature ${HARD}`);
  else if (facts.defaults.temperature !== null && !facts.temperatures) parts.push(`--temperature ${values.temperature}`);
  return parts.join(" ");
}
