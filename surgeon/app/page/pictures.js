// Pixels to the network's input, and arrays to pictures: surgeon/runtime/pictures.py in JavaScript. Arrays are [C, H, W].

/** RGBA pixels of the network's size as its input, f32 in image.range. */
export function toInput(pixels, image) {
  const [low, high] = image.range, size = image.width * image.height, f = Math.fround;
  const input = new Float32Array(image.channels * size);
  for (let place = 0; place < size; place++) {
    const [red, green, blue] = pixels.subarray(4 * place, 4 * place + 3);
    const levels = image.channels === 3 ? [red, green, blue] : [(red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16]; // Pillow's grey
    levels.forEach((level, channel) => { input[channel * size + place] = f(f(f(level / 255) * f(high - low)) + f(low)); });
  }
  return input;
}

/** An input as a picture; what lies in the margin beyond its range is cut. */
export function toPicture(values, image) {
  const [low, high] = image.range;
  return picture(values, image, (value) => (value - low) / (high - low));
}

/** What was added to the input, min-max scaled over the whole picture, as in the paper; grey where nothing was. */
export function difference(clean, perturbed, image) {
  const delta = Float32Array.from(perturbed, (value, place) => value - clean[place]);
  const [low, high] = ends(delta);
  return picture(delta, image, high > low ? (value) => (value - low) / (high - low) : () => 0.5);
}

/** A pullback scaled by its largest absolute value: zero is mid grey in every picture. */
export function heat(pullback, image) {
  const [low, high] = ends(pullback), largest = Math.max(-low, high) || 1;
  return picture(pullback, image, (value) => 0.5 + (0.5 * value) / largest);
}

function ends(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** `values`, each in [0, 1] by `scaled`, as RGBA pixels. */
function picture(values, { channels, width, height }, scaled) {
  const size = width * height, pixels = new Uint8ClampedArray(4 * size).fill(255);
  for (let place = 0; place < size; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = scaled(values[(channels === 3 ? channel * size : 0) + place]);
      pixels[4 * place + channel] = Math.floor(Math.min(1, Math.max(0, value)) * 255 + 0.5);
    }
  }
  return pixels;
}
