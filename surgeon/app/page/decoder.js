// Off the page's thread: a photo's file to the network's input, pixel by pixel as Python does.

import { toInput } from "./pictures.js";
import { plan, resample, shares } from "./resample.js";

const STRIP = 256; // rows at a time: some browsers have no canvas for large photos
const SMALLEST = 8, LONGEST = 20; // as in surgeon/runtime/pictures.py

self.onmessage = async ({ data: { id, file, image } }) => {
  try {
    if (!self.OffscreenCanvas) throw new RangeError("cannot be read: this browser is too old");
    const { pixels, width, height } = await decode(file);
    const planned = plan(width, height, image);
    const input = toInput(resample(pixels, width, height, planned, image), image);
    self.postMessage({ id, input, width, height, crop: shares(planned, image) }, [input.buffer]);
  } catch (error) {
    self.postMessage({ id, error: error instanceof RangeError ? error.message : "cannot be read: its file is damaged, or no picture" });
  }
};

/** RGBA pixels as they are in the file: turned upright, over white, with no colour profile applied. */
async function decode(file) {
  const options = { colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options);
  const { width, height } = bitmap, [shorter, longer] = [width, height].sort((a, b) => a - b);
  if (shorter < SMALLEST) throw new RangeError(`has ${width} × ${height} pixels, too few to show anything`);
  if (longer > LONGEST * shorter) throw new RangeError(`is too elongated (${width} × ${height}): crop it first`);
  const pixels = new Uint8ClampedArray(4 * width * height);
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  for (let y = 0; y < height; y += canvas.height) {
    const rows = Math.min(canvas.height, height - y);
    pen.fillStyle = "white";
    pen.fillRect(0, 0, width, rows);
    pen.drawImage(bitmap, 0, y, width, rows, 0, 0, width, rows);
    pixels.set(pen.getImageData(0, 0, width, rows).data, 4 * width * y);
  }
  bitmap.close();
  return { pixels, width, height };
}
