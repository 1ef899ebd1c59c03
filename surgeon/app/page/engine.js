// onnxruntime-web: its sessions, and the choice of where they run. WebGPU only where it computes what the CPU computes.

const here = (path) => new URL(path, import.meta.url).href;
const THREADS = 8; // more gain nothing on networks of this size
const TOLERANCE = 1e-3; // relative L2, of a pullback on the GPU against the CPU's

/** Where a session may run: { ort, provider, threads }. */
async function cpu() {
  const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, THREADS) : 1;
  Object.assign(ort.env.wasm, { numThreads: threads, wasmPaths: { wasm: here("runtime/ort-wasm-simd-threaded.wasm") } });
  return { ort, provider: "wasm", threads };
}

async function gpu() {
  const ort = await import("./runtime/ort.webgpu.bundle.min.mjs");
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: { wasm: here("runtime/ort-wasm-simd-threaded.asyncify.wasm") } });
  return { ort, provider: "webgpu", threads: 1 };
}

/** One ascent step of a bundle, run by one provider. */
class Step {
  constructor(place, session, facts) {
    Object.assign(this, place);
    this.session = session;
    this.facts = facts;
  }

  static async open(place, files, facts) {
    const session = await place.ort.InferenceSession.create(files.model, {
      executionProviders: [place.provider],
      externalData: files.weights.map(({ path, data }) => ({ path, data })),
      graphOptimizationLevel: "all",
      freeDimensionOverrides: { N: 1 },
      logSeverityLevel: 3, // it warns of inputs that have defaults
    });
    return new Step(place, session, facts);
  }

  /** { perturbed, output, pullback } of one photo: input and origin [C, H, W], class `target` (null: none, no step). */
  async run({ input, origin, target, temperature, stepSize, radius }) {
    const { ort, facts, session } = this, { channels, height, width } = facts.image;
    const photo = (values) => new ort.Tensor("float32", values, [1, channels, height, width]);
    const number = (value) => new ort.Tensor("float32", Float32Array.of(value), []);
    const cotangent = new Float32Array(facts.labels.length);
    if (target !== null) cotangent[target] = 1;
    const feeds = {
      input: photo(input),
      origin: photo(origin),
      cotangent: new ort.Tensor("float32", cotangent, [1, cotangent.length]),
      step_size: number(stepSize),
      radius: number(radius ?? 1e30), // no limit
    };
    if (facts.temperatures) {
      const each = Float32Array.from(facts.temperatures, (own) => (temperature.fixed ? temperature.value : own * temperature.value));
      feeds.temperature = new ort.Tensor("float32", each, [each.length]);
    } else if (facts.defaults.temperature !== null) {
      feeds.temperature = number(temperature.value);
    }
    const made = await session.run(feeds);
    return { perturbed: made.perturbed.data, output: made.output.data, pullback: made.pullback.data };
  }

  release() {
    return this.session.release();
  }
}

/** The fastest step that can be trusted, and a sentence about it where WebGPU was tried in vain. */
export async function open(files, facts, device) {
  const step = await Step.open(await cpu(), files, facts);
  if (device === "wasm") return [step, ""];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return [step, device === "webgpu" ? "this browser has no WebGPU" : ""];
  if (device !== "webgpu" && (adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter)) return [step, ""]; // a GPU that the CPU imitates
  let other = null;
  try {
    other = await Step.open(await gpu(), files, facts);
    const apart = await disagreement(step, other);
    if (!(apart < TOLERANCE)) throw new Error(`its pullback is ${(100 * apart).toPrecision(2)} % off`);
    await step.release();
    return [other, ""];
  } catch (error) {
    await other?.release().catch(() => {});
    return [step, `WebGPU is not used: ${firstLine(error)}`];
  }
}

/** Relative L2 distance between two providers' pullbacks and outputs, the larger, of one step on a fixed picture. */
async function disagreement(one, other) {
  const { channels, height, width } = one.facts.image, size = height * width;
  const input = Float32Array.from({ length: channels * size }, (_, place) => 0.8 * Math.sin(place / 7) * Math.cos((place % size) / width / 5));
  const feeds = { input, origin: input, target: 0, temperature: { value: one.facts.defaults.temperature ?? 1 }, stepSize: 1, radius: null };
  const [mine, theirs] = [await one.run(feeds), await other.run(feeds)];
  return Math.max(...["pullback", "output", "perturbed"].map((name) => distance(mine[name], theirs[name])));
}

function distance(expected, found) {
  let apart = 0, length = 0;
  expected.forEach((value, place) => { apart += (found[place] - value) ** 2; length += value ** 2; });
  return Math.sqrt(apart / (length || 1));
}

export const firstLine = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 300);
