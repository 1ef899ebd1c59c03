// The page: what was chosen goes to the worker, what the worker finds is shown.

import { bars } from "./bars.js";
import { Classes } from "./classes.js";
import { drawCurve } from "./curve.js";
import { Dial } from "./dial.js";
import { $, make, save } from "./elements.js";
import { Photos } from "./photo.js";
import { Result } from "./result.js";
import { climbs, command, DIALS, fromHash, GATES, toHash, within } from "./settings.js";

const NOTES = {
  steps: "along the pullback",
  step_size: "L2 norm of each",
  radius: "largest change",
  temperature: "softness of the gates",
};
const NARROW = "(max-width: 860px)"; // as in style.css: results are beneath the settings there
const WAIT = 250; // ms until a changed setting is looked at

const site = await (await fetch("surgeon-site.json")).json();
const chosen = { model: null, photo: null, target: null, gates: "soft", device: "auto", values: {} };
let own = false; // whether the user chose the target; else it is what the network sees in the photo
let facts = null; // of the model
let photo = null; // as Photos gives it
let ready = false; // the model is
let opening = 0; // the number of the model that was asked for last
let climb = null; // the one that was asked for last: { id, steps, gates, results, scores, before, after, … }
let number = 0, looking = 0;

// ---- the worker

const worker = new Worker("worker.js", { type: "module" });
worker.onerror = (event) => fail(event.message || "the worker cannot be started");
worker.onmessage = ({ data }) => {
  if (data.model !== undefined && data.model !== opening) return; // another has been asked for since
  ({ loading, preparing, ready: opened, step, done, failed })[data.kind](data);
};

function loading({ done, total }) {
  say(`Loading ${facts?.model.name ?? chosen.model}: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`, done / total);
}

function preparing() {
  say("Preparing the network …", null);
}

function opened({ provider, threads, note }) {
  ready = true;
  const alone = threads === 1 && !crossOriginIsolated ? " (the host sends no COOP and COEP headers)" : "";
  const where = provider === "webgpu" ? "the GPU, by WebGPU" : `the CPU, ${threads === 1 ? "one thread" : `${threads} threads`}${alone}`;
  $("runs-on").textContent = `Runs on ${where}. ${note ? `${note}.` : ""}`;
  $("runs-on").dataset.provider = provider;
  say(photo ? "Looking at the photo …" : "Ready.");
  look();
}

function failed({ during, id, message }) {
  if (during === "climb" && id !== climb?.id) return;
  if (climb) climb.running = false;
  fail(message);
}

function step(told) {
  if (told.id !== climb?.id) return;
  const { gate, top, score } = told;
  if (chosen.target === null) setTarget(told.target); // what the network sees
  climb.target = told.target;
  (climb.scores[gate] ??= []).push(score);
  if (told.number === 0) climb.before = top;
  climb.after[gate] = top;
  climb.results[gate].show(climb.input, told, climb.steps);
  showOutputs();
  if (climb.steps) say(`Step ${told.number} of ${climb.steps}`, (told.number + 1) / (climb.steps + 1), false);
}

function done({ id, stopped, seconds }) {
  if (id !== climb?.id) return;
  climb.running = false;
  climb.seconds = seconds;
  const count = Math.max(...Object.values(climb.scores).map((scores) => scores.length)) - 1;
  if (!climb.steps) say("Ready.");
  else say(`${stopped ? "Stopped" : "Done"}: ${count} step${count === 1 ? "" : "s"} in ${seconds.toFixed(1)} s.`);
  showButtons();
  $("results").setAttribute("aria-busy", "false");
}

// ---- looking and climbing

/** Shows the photo's pullback and what the network sees in it, soon; a climb's result stays until then. */
function look() {
  clearTimeout(looking);
  looking = setTimeout(() => start(0), climb ? WAIT : 0);
}

function start(steps) {
  clearTimeout(looking);
  if (!ready || !photo) return showButtons();
  const gates = climbs(chosen.gates, chosen.values.temperature, facts.recipe.gate);
  const words = ({ gate, temperature }) => (gate === "hard" ? "the ordinary gradient" : temperature.value === null ? "" : `T = ${temperature.value}`);
  const made = { id: ++number, steps, photo, facts, input: photo.input, scores: {}, after: {}, before: null, target: chosen.target, running: true, settings: structuredClone(chosen) };
  const results = Object.fromEntries(gates.map((one) => [one.gate, new Result(one.gate, words(one), facts, () => stem(made))]));
  climb = Object.assign(made, { results });
  $("pictures").replaceChildren(...Object.values(results).map((result) => result.element));
  if (!steps) say("Looking at the photo …", null, false);
  else {
    say("Step 0", 0);
    $("results").setAttribute("aria-busy", "true");
    if (matchMedia(NARROW).matches) $("results").scrollIntoView({ behavior: "smooth" });
  }
  showButtons();
  worker.postMessage({ kind: "climb", id: climb.id, input: photo.input, target: chosen.target, steps, stepSize: chosen.values.step_size, radius: chosen.values.radius, gates });
}

function stop() {
  worker.postMessage({ kind: "stop" });
}

/** The start of the names of a climb's files; its pictures are shown until another model's are there. */
const stem = ({ photo, facts, target }) => `${(photo?.name || "photo").replace(/\.[^.]+$/, "")}.${facts.labels[target].replace(/[^\p{L}\p{N}]+/gu, "-")}`;

/** What was chosen, where nothing has been climbed yet. */
const unclimbed = () => ({ photo, facts, target: chosen.target });

// ---- what is shown

function say(text, share, aloud = true) {
  const bar = $("progress");
  bar.hidden = share === undefined;
  if (share === null) bar.removeAttribute("value");
  else if (share !== undefined) bar.value = share;
  $("status").setAttribute("aria-live", aloud ? "polite" : "off");
  $("status").textContent = text;
  $("status").classList.remove("wrong");
}

function fail(message) {
  say(`That did not work: ${message}`);
  $("status").classList.add("wrong");
  showButtons();
}

function refuse(message) {
  $("refused").textContent = message;
  $("refused").hidden = false;
}

function showButtons() {
  const running = Boolean(climb?.running && climb.steps);
  $("run").hidden = running;
  $("stop").hidden = !running;
  $("run").disabled = !(ready && photo);
  for (const id of ["save-settings", "copy-link", "copy-command"]) $(id).disabled = !facts || chosen.target === null;
}

function showOutputs() {
  const { before, after, target, steps, scores } = climb;
  const lists = [bars("Before", "before", before ?? [], facts.labels, target, choose)];
  if (steps) for (const [gate, top] of Object.entries(after)) {
    lists.push(bars(Object.keys(after).length > 1 ? `After, ${gate} gates` : "After", gate, top, facts.labels, target, choose));
  }
  const held = document.activeElement?.closest?.("#outputs .bar");
  const spot = held && [...$("outputs").querySelectorAll(".bar")].indexOf(held);
  $("outputs").replaceChildren(...lists);
  if (held) $("outputs").querySelectorAll(".bar")[spot]?.focus();
  $("curve").hidden = !steps;
  if (steps) drawCurve({ svg: $("curve-svg"), words: $("curve-words"), table: $("curve-table") }, scores, steps);
  $("legend").hidden = Object.keys(scores).length < 2;
}

function showPhoto() {
  $("refused").hidden = true;
  const preview = $("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(photo.file);
  preview.alt = `The photo ${photo.name}; the framed part is what the network sees`;
  $("photo").classList.add("there");
  const crop = $("crop"), [left, top, width, height] = photo.crop.map((share) => `${100 * share}%`);
  Object.assign(crop.style, { left, top, width, height });
  const { width: wide, height: high } = facts.image, own = photo.example ? "" : `${photo.width} × ${photo.height}, `;
  $("photo-words").textContent = `${photo.name}: ${own}the network sees ${wide} × ${high}`;
  for (const one of $("examples").querySelectorAll(".example")) one.setAttribute("aria-pressed", String(one.dataset.name === photo.example));
}

function remember() {
  history.replaceState(null, "", toHash(chosen));
  if (facts && chosen.target !== null) $("command").textContent = command({ ...chosen, photo: photo?.name }, facts, chosen.gates);
  $("command").parentElement.hidden = !$("command").textContent;
  showButtons();
}

// ---- what is chosen

const dials = Object.fromEntries(DIALS.map((dial) => [dial.name, new Dial(dial, NOTES[dial.name], (value) => set(dial.name, value))]));
$("dials").append(...Object.values(dials).map((dial) => dial.element));
const classes = new Classes($("class"), $("class-list"), choose);
const photos = new Photos(chose, refuse);

function set(name, value) {
  chosen.values[name] = value;
  remember();
  if (name === "temperature" && !climb?.steps) look();
}

function setTarget(index) {
  chosen.target = index;
  classes.show(index);
  remember();
}

function choose(index) {
  own = true;
  setTarget(index);
  look();
}

function chose(made) {
  photo = made;
  chosen.photo = made.example;
  if (!own) {
    chosen.target = null;
    classes.show(null);
  }
  showPhoto();
  remember();
  look();
}

/** The model, its limits and its examples; what is not said has its default. */
async function openModel(name, values = {}, target = null) {
  const number = ++opening;
  ready = false;
  climb = null;
  worker.postMessage({ kind: "stop" });
  showButtons();
  chosen.model = name;
  const folder = `models/${name}/`, told = await (await fetch(`${folder}model.json`)).json();
  if (number !== opening) return;
  facts = told;
  photos.image = facts.image;
  photos.list(site.photos, folder);
  classes.labels = facts.labels;
  own = target !== null && target < facts.labels.length;
  chosen.target = own ? target : null;
  classes.show(chosen.target);
  for (const dial of DIALS) {
    const limits = facts.limits[dial.name], given = values[dial.name], usual = facts.defaults[dial.name];
    const value = given === undefined ? usual : given === null ? null : (within(dial, limits, given) ?? usual);
    const takes = usual !== null || dial.name === "radius";
    chosen.values[dial.name] = takes ? value : null;
    dials[dial.name].element.hidden = !takes;
    if (takes) dials[dial.name].limit(limits, value);
  }
  dials.temperature.note.textContent = facts.temperatures ? "times each gate's own" : NOTES.temperature;
  if (!facts.hardens) chosen.gates = "soft";
  $("gates").hidden = !facts.hardens;
  showGates();
  const { model, recipe } = facts;
  $("about").textContent = `${model.name}: ${(model.parameters / 1e6).toPrecision(3)} M parameters, weights ${model.weights} (${model.licence}), ${recipe.gate} gates, objective ${recipe.objective}`;
  openSession();
}

function openSession() {
  ready = false;
  showButtons();
  worker.postMessage({ kind: "open", model: ++opening, name: chosen.model, device: chosen.device });
}

function showGates() {
  for (const input of document.querySelectorAll("input[name=gates]")) input.checked = input.value === chosen.gates;
}

// ---- links, files

async function restore() {
  const asked = fromHash(location.hash);
  const model = site.models.find((one) => one.name === asked.model)?.name ?? site.models[0].name;
  chosen.gates = asked.gates ?? "soft";
  chosen.device = asked.device ?? "auto";
  $("model").value = model;
  $("device").value = chosen.device;
  await openModel(model, asked.values, asked.target ?? null);
  const name = site.photos.find((one) => one.name === asked.photo)?.name ?? photo?.example ?? site.photos[0]?.name;
  if (photo && !asked.photo) await photos.again(photo);
  else if (name) await photos.example(name);
  else remember();
}

function settings() {
  const { photo, target, settings: made, seconds, scores, before, after } = climb ?? unclimbed();
  const list = (top) => top?.map(({ index, probability }) => ({ index, label: facts.labels[index], probability }));
  return {
    model: facts.model, recipe: facts.recipe, photo: photo?.name ?? null, target: { index: target, label: facts.labels[target] },
    settings: { ...(made ?? chosen).values, gates: (made ?? chosen).gates }, provider: $("runs-on").dataset.provider, seconds,
    score: scores, before: list(before), after: after && Object.fromEntries(Object.entries(after).map(([gate, top]) => [gate, list(top)])),
    versions: facts.versions, command: $("command").textContent, link: location.href,
  };
}

async function copy(text, button) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => { button.textContent = words; }, 1500);
}

$("model").append(...site.models.map(({ name, title }) => make("option", { value: name }, title === name ? name : `${name} (${title})`)));
$("model-row").hidden = site.models.length < 2;
$("gate-choices").append(...Object.entries(GATES).map(([value, label]) => make("label", {}, make("input", { type: "radio", name: "gates", value }), make("span", {}, label))));
$("gate-choices").addEventListener("change", ({ target }) => { chosen.gates = target.value; remember(); look(); });
$("model").addEventListener("change", async () => {
  await openModel($("model").value);
  photos.again(photo);
});
$("device").addEventListener("change", () => {
  chosen.device = $("device").value;
  remember();
  openSession();
});
$("defaults").addEventListener("click", () => {
  for (const { name } of DIALS) {
    chosen.values[name] = facts.defaults[name];
    if (!dials[name].element.hidden) dials[name].show(facts.defaults[name]);
  }
  remember();
  look();
});
$("settings").addEventListener("submit", (event) => { event.preventDefault(); if (!$("run").disabled) start(chosen.values.steps); });
$("stop").addEventListener("click", stop);
$("save-settings").addEventListener("click", () => save(new Blob([JSON.stringify(settings(), null, 1)], { type: "application/json" }), `${stem(climb ?? unclimbed())}.json`));
$("copy-link").addEventListener("click", ({ target }) => copy(location.href, target));
$("copy-command").addEventListener("click", ({ target }) => copy($("command").textContent, target));
addEventListener("hashchange", restore);
await restore().catch(({ message }) => fail(message)); // a part of the site is not there
