// Pillow's resizing of 8-bit pictures, in its own integer arithmetic: the same pixels as `surgeon run` takes.

const BITS = 22; // of a weight's fraction, as in Pillow

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at(x) {
      const a = -0.5, d = Math.abs(x);
      if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
      return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
    },
  },
};

/** Where a photo is resized to and cropped from: surgeon/runtime/pictures.py's `fit`, by the manifest's image. */
export function plan(width, height, image) {
  if (width === height) return { width: image.width, height: image.height, left: 0, top: 0 };
  const scale = Math.max(image.resize / Math.min(width, height), image.width / width, image.height / height);
  const [wide, high] = [width, height].map((side) => Math.trunc(side * scale + 1e-6));
  return { width: wide, height: high, left: even((wide - image.width) / 2), top: even((high - image.height) / 2) };
}

/** The crop of `plan` as shares of the photo: left, top, width, height. */
export function shares(planned, image) {
  const { width, height, left, top } = planned;
  return [left / width, top / height, image.width / width, image.height / height];
}

/** RGBA pixels [height, width] resized and cropped as `planned`, to image.width x image.height. */
export function resample(pixels, width, height, planned, image) {
  if (image.interpolation === "nearest") return nearest(pixels, width, height, planned, image);
  const filter = FILTERS[image.interpolation];
  const columns = weights(width, planned.width, planned.left, image.width, filter);
  const rows = weights(height, planned.height, planned.top, image.height, filter);
  // Pillow 13 begins with the rows where that saves most; levels are rounded in between, so the order is seen.
  if (height - planned.height > Math.max(0, 2 * (width - planned.width))) {
    return across(down(pixels, width, rows), width, image.height, columns);
  }
  return down(across(pixels, width, height, columns), image.width, rows);
}

/** For each of `count` places from `start`: the first source it reads, and its weights, which sum to 2 ** BITS. */
function weights(from, to, start, count, filter) {
  if (from === to) return Array.from({ length: count }, (_, place) => [start + place, Int32Array.of(1 << BITS)]);
  const scale = from / to, wide = Math.max(scale, 1), support = filter.support * wide;
  return Array.from({ length: count }, (_, place) => {
    const centre = (start + place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: end - first }, (_, x) => filter.at((x + first - centre + 0.5) * (1 / wide)));
    const sum = raw.reduce((total, weight) => total + weight, 0);
    return [first, Int32Array.from(raw, (w) => Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)))];
  });
}

function across(pixels, width, height, columns) {
  const made = new Uint8ClampedArray(4 * columns.length * height);
  for (let y = 0, to = 0; y < height; y++) {
    for (const [first, weight] of columns) {
      let red = 1 << (BITS - 1), green = red, blue = red;
      for (let x = 0, at = 4 * (y * width + first); x < weight.length; x++, at += 4) {
        red += weight[x] * pixels[at];
        green += weight[x] * pixels[at + 1];
        blue += weight[x] * pixels[at + 2];
      }
      made[to++] = red >> BITS;
      made[to++] = green >> BITS;
      made[to++] = blue >> BITS;
      made[to++] = 255;
    }
  }
  return made;
}

function down(pixels, width, rows) {
  const made = new Uint8ClampedArray(4 * width * rows.length);
  rows.forEach(([first, weight], row) => {
    for (let x = 0; x < 4 * width; x++) {
      let sum = 1 << (BITS - 1);
      for (let y = 0; y < weight.length; y++) sum += weight[y] * pixels[4 * width * (first + y) + x];
      made[4 * width * row + x] = sum >> BITS;
    }
  });
  return made;
}

function nearest(pixels, width, height, planned, image) {
  const columns = sources(width, planned.width, planned.left, image.width);
  const rows = sources(height, planned.height, planned.top, image.height);
  const made = new Uint8ClampedArray(4 * image.width * image.height);
  let to = 0;
  for (const y of rows) for (const x of columns) for (let part = 0; part < 4; part++) made[to++] = pixels[4 * (y * width + x) + part];
  return made;
}

/** Pillow adds the scale up from place to place, and its rounding errors with it. */
function sources(from, to, start, count) {
  const scale = from / to, found = [];
  for (let place = 0, at = scale * 0.5; place < start + count; place++, at += scale) if (place >= start) found.push(Math.trunc(at));
  return found;
}

/** Half goes to the even neighbour, as Python rounds. */
function even(value) {
  const down = Math.floor(value);
  return value - down === 0.5 ? down + (down % 2) : Math.round(value);
}
