// Photos: chosen, dropped, pasted, taken, or one of the examples; each becomes the network's input, off this thread.

import { $, make } from "./elements.js";

const LARGEST = 50e6; // pixels: beyond, a browser may have no memory for it

export class Photos {
  /** `chosen(photo)` gets { name, example, file, input, width, height, crop }; `refused(message)` why there is none. */
  constructor(chosen, refused) {
    Object.assign(this, { chosen, refused, image: null, asked: 0, pending: null, decoder: new Worker("decoder.js", { type: "module" }) });
    this.decoder.onmessage = ({ data }) => this.decoded(data);
    this.decoder.onerror = () => refused("The photo cannot be read here");
    for (const id of ["file", "camera"]) $(id).addEventListener("change", ({ target }) => { this.take(target.files[0]); target.value = ""; });
    $("choose").addEventListener("click", () => $("file").click());
    $("take").addEventListener("click", () => $("camera").click());
    document.addEventListener("paste", ({ clipboardData }) => {
      const file = [...clipboardData.files][0];
      if (file) this.take(file);
      else if (!document.activeElement?.matches("input")) refused("There is no picture on the clipboard");
    });
    this.listenForDrops();
  }

  listenForDrops() {
    let inside = 0;
    const mark = (by) => { inside = Math.max(0, inside + by); document.body.classList.toggle("dropping", inside > 0); };
    addEventListener("dragenter", (event) => { event.preventDefault(); mark(1); });
    addEventListener("dragleave", () => mark(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      mark(-inside);
      const [file] = event.dataTransfer.files;
      if (file) this.take(file);
      else this.refused("That was no file");
    });
  }

  /** The examples { name, file } of the model in `folder`, as thumbnails. */
  list(examples, folder) {
    Object.assign(this, { examples, folder });
    $("examples").replaceChildren(...examples.map(({ name, file }) =>
      make("li", {}, make("button", { type: "button", class: "example", "data-name": name, "aria-pressed": "false", "aria-label": `Example photo ${file}`, title: file, click: () => this.example(name) },
        make("img", { src: this.address(name), alt: "", width: 56, height: 56, loading: "lazy" })))));
    $("examples").hidden = !examples.length;
  }

  address(name) {
    return `${this.folder}photos/${encodeURIComponent(name)}.png`;
  }

  async example(name) {
    const { file } = this.examples.find((one) => one.name === name);
    try {
      const answer = await fetch(this.address(name));
      if (!answer.ok) throw new Error();
      await this.take(new File([await answer.blob()], file), name);
    } catch {
      this.refused(`The example ${file} cannot be had`);
    }
  }

  /** The photo that is on its way, else `shown`, again for another model: its own copy of an example. */
  again(shown) {
    if (!this.pending && !shown) return;
    const { name, example, file } = this.pending ?? shown;
    return example ? this.example(example) : this.take(file, null, name);
  }

  async take(file, example = null, name = file?.name) {
    if (!file) return;
    if (!this.image) return this.refused("The page is still loading");
    const number = ++this.asked, address = URL.createObjectURL(file);
    this.pending = { name, example, file };
    try {
      const seen = await size(address);
      if (number !== this.asked) return;
      if (seen.width * seen.height > LARGEST) throw new Error(`has ${Math.round((seen.width * seen.height) / 1e6)} megapixels, and 50 is the most: make it smaller first`);
      this.decoder.postMessage({ id: number, file, image: this.image });
    } catch (error) {
      if (number === this.asked) this.decoded({ id: number, error: error.message });
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  decoded({ id, error, ...made }) {
    if (id !== this.asked) return;
    const { pending } = this;
    this.pending = null;
    if (error) this.refused(`${pending.name || "The photo"} ${error}`);
    else this.chosen({ ...pending, ...made });
  }
}

/** Width and height of the picture at `address`, which the browser reads without decoding it. */
function size(address) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve({ width: picture.naturalWidth, height: picture.naturalHeight });
    picture.onerror = () => reject(new Error("is not a picture that this browser can read"));
    picture.src = address;
  });
}
