// Off the page's thread: opens a model and climbs, one step after the other, as `Session.steps` does in Python.

import { firstLine, open } from "./engine.js";
import { score, top } from "./scores.js";

let step = null, facts = null, wanted = 0; // `wanted`: the climb that may go on
let turn = Promise.resolve();

self.onmessage = ({ data }) => {
  wanted = data.id ?? 0;
  if (data.kind !== "stop") turn = turn.then(() => ({ open: load, climb })[data.kind](data)).catch((error) => {
    self.postMessage({ kind: "failed", model: data.model, during: data.kind, id: data.id, message: firstLine(error) });
  });
};

async function load({ model: number, name, device }) {
  await step?.release();
  step = null;
  const folder = new URL(`models/${name}/`, import.meta.url);
  facts = await (await got(new URL("model.json", folder))).json();
  let done = 0;
  const tell = (bytes) => self.postMessage({ kind: "loading", model: number, done: (done += bytes), total: facts.bytes });
  const [model, ...weights] = await Promise.all(["ascent_step.onnx", ...facts.weights].map((file) => read(new URL(file, folder), tell)));
  self.postMessage({ kind: "preparing", model: number });
  const files = { model, weights: weights.map((data, place) => ({ path: facts.weights[place], data })) };
  const [opened, note] = await open(files, facts, device);
  step = opened;
  self.postMessage({ kind: "ready", model: number, provider: step.provider, threads: step.threads, note });
}

/** Tells of each state, before any step and after each of `steps`, for every one of `gates` in turn. */
async function climb({ id, input, target, steps, stepSize, radius, gates }) {
  if (!step) throw new Error("the model is not loaded");
  const began = performance.now();
  if (target === null) {
    const { output } = await step.run({ input, origin: input, target, temperature: gates[0].temperature, stepSize, radius });
    target = top(output, 1)[0].index;
  }
  const at = gates.map(() => input);
  let number = 0;
  for (; number <= steps; number++) {
    for (const [place, { gate, temperature }] of gates.entries()) {
      if (id !== wanted) return self.postMessage({ kind: "done", id, stopped: true, seconds: (performance.now() - began) / 1000 });
      const { perturbed, output, pullback } = await step.run({ input: at[place], origin: input, target, temperature, stepSize, radius });
      if (!pullback.every(Number.isFinite)) throw new Error(`step ${number} led to values that are not finite`);
      self.postMessage({
        kind: "step", id, gate, number, target, perturbed: at[place],
        pullback: number === 0 ? pullback : null, score: score(output, target, facts.recipe.objective), top: top(output),
      });
      at[place] = perturbed;
      await new Promise((resolve) => setTimeout(resolve)); // lets a stop in
    }
  }
  self.postMessage({ kind: "done", id, stopped: false, seconds: (performance.now() - began) / 1000 });
}

async function got(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} is not there (${answer.status})`);
  return answer;
}

/** The bytes of a file, with `tell` of each piece as it comes. */
async function read(address, tell) {
  const pieces = [];
  for (let reader = (await got(address)).body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    tell(value.length);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}
