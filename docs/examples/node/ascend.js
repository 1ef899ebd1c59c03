// Runs a bundle in Node.js: the pullback of a class at a photo, and an ascent along such pullbacks.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

const [bundle, photo, name, out, raw] = process.argv.slice(2);
if (!out) throw new Error("usage: node ascend.js BUNDLE PHOTO CLASS OUT [RAW]");

const manifest = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf8"));
const { width, height, range: [low, high] } = manifest.image;
const classes = manifest.artifacts["pullback.onnx"].outputs[0].shape[1];
const label = (index) => manifest.labels?.[index] ?? String(index);
const target = /^\d+$/.test(name) ? Number(name) : (manifest.labels ?? []).indexOf(name);
if (target < 0 || target >= classes) throw new Error(`there is no class ${name}`);

const open = (file) => InferenceSession.create(join(bundle, file), { logSeverityLevel: 3 });
const pullback = await open("pullback.onnx");
const ascent = await open("ascent.onnx");

const oneHot = new Float32Array(classes);
oneHot[target] = 1;
const feeds = {
  input: new Tensor("float32", await readPhoto(), [1, 3, height, width]),
  cotangent: new Tensor("float32", oneHot, [1, classes]),
};
// Inputs of files exported with `--scalars required`. Elsewhere they have defaults, and onnxruntime-node knows
// nothing of inputs that have one.
const { temperature, step_size, radius, steps } = manifest.defaults;
const scalar = (value) => new Tensor("float32", [Number(value)], []);
Object.assign(feeds, { temperature: scalar(temperature), step_size: scalar(step_size), radius: scalar(radius) });
feeds.steps = new Tensor("int64", [BigInt(steps)], []);
const taken = ({ inputNames }) => Object.fromEntries(inputNames.map((name) => [name, feeds[name]]));

const before = await pullback.run(taken(pullback)); // { output, pullback }
const after = await ascent.run(taken(ascent)); // { perturbed, output, pullback, score }

const score = after.score.data; // before each step, and after the last
console.log(`before  ${top(before.output.data)}`);
console.log(`after   ${top(after.output.data)}`);
console.log(`score   ${score[0].toPrecision(4)} -> ${score.at(-1).toPrecision(4)} for ${label(target)}`);
await writePicture(after.perturbed.data);
if (raw) {
  await mkdir(raw, { recursive: true });
  const tensors = { output: before.output, pullback: before.pullback, perturbed: after.perturbed, score: after.score };
  for (const [name, { data }] of Object.entries(tensors)) await writeFile(join(raw, `${name}.f32`), data);
}

/** The photo, cut to the bundle's size: bytes r g b r g b … to planes of red, green and blue in the bundle's range. */
async function readPhoto() {
  const picture = sharp(photo).rotate().resize(width, height, { fit: "cover", kernel: "cubic" });
  const bytes = await picture.flatten({ background: "white" }).toColourspace("srgb").raw().toBuffer();
  const plane = width * height;
  const level = (i) => bytes[(i % plane) * 3 + Math.floor(i / plane)] / 255;
  return Float32Array.from(bytes, (_, i) => low + level(i) * (high - low));
}

/** The other way round. */
async function writePicture(values) {
  const plane = width * height;
  const level = (i) => (values[(i % 3) * plane + Math.floor(i / 3)] - low) / (high - low);
  const bytes = Uint8ClampedArray.from(values, (_, i) => 255 * level(i)); // rounds, and cuts at 0 and 255
  await sharp(bytes, { raw: { width, height, channels: 3 } }).toFile(out);
}

/** The five most probable classes of an output, best first. */
function top(output) {
  const largest = Math.max(...output);
  const odds = Array.from(output, (value) => Math.exp(value - largest));
  const sum = odds.reduce((a, b) => a + b);
  const best = [...odds.keys()].sort((a, b) => odds[b] - odds[a]).slice(0, 5);
  return best.map((index) => `${label(index)} ${((100 * odds[index]) / sum).toFixed(1)} %`).join("  ");
}
