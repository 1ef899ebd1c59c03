// Lays out and draws as layout.py and svg.py do, again whenever a module is opened or closed.

const { groups, edges, geometry: G, note, legend, opened: initially } = JSON.parse(document.getElementById("data").textContent);
const picture = document.getElementById("picture"), view = document.getElementById("view"), panel = document.getElementById("panel");
const LEFT = G.margin, RIGHT = G.margin + G.box + G.gap, TOP = 40, PAD = 10, LONG = 400;
const two = groups[0].hasBackward, WIDTH = two ? RIGHT + G.box + G.margin : RIGHT;
const opened = new Set(initially);
let rows, frames, tops, drawn, most, height, painted = [0, 0], chosen = null, at = { x: 0, y: 0, scale: 1 };

// ---- layout

function layOut() {
  rows = new Map();
  frames = [];
  const place = (number, y, depth) => {
    const { children } = groups[number];
    if (!opened.has(number) || !children.length) {
      rows.set(number, y);
      return y + G.row + G.space;
    }
    const frame = { number, top: y, bottom: 0, depth };
    if (number) {
      frames.push(frame);
      y += G.head;
    }
    for (const child of children) y = place(child, y, depth + 1);
    if (number) {
      frame.bottom = y - G.space + 2 * G.foot;
      y = frame.bottom + G.space - G.foot;
    }
    return y;
  };
  height = place(0, TOP, 0) + G.foot;
  tops = [...frames.map(({ number, top }) => [number, top, true]), ...[...rows].map(([number, y]) => [number, y, false])];
  tops.sort((one, other) => one[1] - other[1]);
  drawn = paths();
  most = Math.max(1, ...[...rows.keys()].map((number) => Math.max(groups[number].work, groups[number].backWork)));
}

function shown(number) {
  let found = number;
  for (let above = groups[number].parent; above !== null; above = groups[above].parent) if (!opened.has(above)) found = above;
  return found;
}

function paths() {
  const visible = new Map(), found = [];
  for (const [a, b, kind] of edges) {
    const start = shown(a), end = shown(b);
    visible.set(`${start} ${end} ${kind}`, [start, end, kind]);
  }
  for (const kind of ["saved", "forward", "backward"]) {
    const side = kind === "forward" ? LEFT : RIGHT, has = kind === "forward" ? "hasForward" : "hasBackward";
    const order = new Map([...rows.keys()].filter((number) => groups[number][has]).map((number, place) => [number, place]));
    const arcs = [];
    for (const [start, end, its] of visible.values()) {
      if (its !== kind) continue;
      const a = rows.get(start), b = rows.get(end);
      if (kind === "saved") {
        const y = a + G.row / 2, to = b + G.row / 2, middle = (LEFT + G.box + RIGHT) / 2;
        found.push([kind, Math.min(a, b), Math.max(a, b), `M${LEFT + G.box} ${y}C${middle} ${y} ${middle} ${to} ${RIGHT} ${to}`]);
      } else if (start === end || !order.has(start) || !order.has(end)) {
        continue;
      } else if (order.get(end) - order.get(start) === (kind === "forward" ? 1 : -1)) {
        const [y, to] = kind === "forward" ? [a + G.row, b] : [a, b + G.row];
        found.push([kind, Math.min(y, to), Math.max(y, to), `M${side + G.box / 2} ${y}V${to}`]);
      } else {
        arcs.push([a, b]);
      }
    }
    const taken = [];
    arcs.sort((one, other) => Math.abs(one[0] - one[1]) - Math.abs(other[0] - other[1]) || one[0] - other[0] || one[1] - other[1]);
    for (const [a, b] of arcs) {
      const low = Math.min(a, b), high = Math.max(a, b);
      let lane = taken.findIndex((used) => used.every(([bottom, top]) => high <= bottom || low >= top));
      if (lane < 0) lane = taken.push([]) - 1;
      taken[lane].push([low, high]);
      const outside = G.lane * (lane % G.lanes) + 12;
      const [edge, to] = kind === "forward" ? [side, side - outside] : [side + G.box, side + G.box + outside];
      found.push([`${kind} arc`, low, high, arc(edge, to, a + 0.68 * G.row, b + 0.32 * G.row)]);
    }
  }
  return found;
}

function arc(edge, lane, y, to) {
  const turn = 6 * Math.sign(edge - lane), down = 6 * Math.sign(to - y);
  return `M${edge} ${y}H${lane + turn}Q${lane} ${y} ${lane} ${y + down}V${to - down}Q${lane} ${to} ${lane + turn} ${to}H${edge}`;
}

// ---- drawing: names come from a file, so they become text and attributes, never markup

function make(parent, tag, attributes = {}, words) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (words !== undefined) made.textContent = words;
  return parent.appendChild(made);
}

const cut = (words, room, wide) => {
  const most = Math.max(1, Math.floor(room / wide));
  return words.length <= most ? words : words.slice(0, most - 1) + "…";
};

function line(parent, x, y, words, figure, strong) {
  const room = G.box - 2 * PAD - figure.length * 6.1 - 8;
  if (words) make(parent, "text", { x: x + PAD, y, class: strong ? "name" : "soft" }, cut(words, room, strong ? 7.2 : 6.1));
  if (figure) make(parent, "text", { x: x + G.box - PAD, y, class: "end soft" }, figure);
}

function box(parent, x, y, work, most) {
  make(parent, "rect", { class: "box", x, y, width: G.box, height: G.row, rx: 5 });
  if (work) make(parent, "rect", { class: "bar", x: x + 4, y: y + G.row - 4, width: ((G.box - 8) * work) / most, height: 3, rx: 1.5 });
}

function drawRow(number, y) {
  const group = groups[number], port = group.kind === "port", opens = group.children.length > 0;
  const name = (opens ? "▸ " : "") + group.short;
  const row = item(number, opens ? "opens" : "", group);
  if (opens) row.setAttribute("aria-expanded", "false");
  if (group.hasForward) {
    const side = make(row, "g", { class: `forward${port ? " port" : ""}` });
    box(side, LEFT, y, group.work, most);
    line(side, LEFT, y + 17, name, group.shape, true);
    line(side, LEFT, y + 32, group.left, port ? "" : group.workText, false);
  }
  if (group.hasBackward) {
    const side = make(row, "g", { class: `backward${port ? " port" : ""}` });
    box(side, RIGHT, y, group.backWork, most);
    line(side, RIGHT, y + 17, port || group.hasForward ? group.right : name, group.back, port || !group.hasForward);
    line(side, RIGHT, y + 32, port || group.hasForward ? "" : group.right, port ? "" : group.backText, false);
    if (group.gates) {
      const width = group.gates.length * 6.2 + 14;
      make(side, "rect", { class: "chip", x: RIGHT + PAD, y: y + 22.5, width, height: 14, rx: 7 });
      make(side, "text", { class: "chip-text", x: RIGHT + PAD + width / 2, y: y + 33 }, group.gates);
    }
  }
  make(row, "rect", { class: "hit", x: LEFT - 3, y: y - 3, width: WIDTH - LEFT - (two ? G.margin : G.gap) + 6, height: G.row + 6, rx: 6 });
}

function item(number, style, group) {
  const label = [group.name || group.short, group.shape, group.gates].filter(Boolean).join(", ");
  return make(view, "g", { role: "treeitem", tabindex: -1, "data-group": number, class: style, "aria-label": label });
}

function draw() {
  layOut();
  paint();
  choose(chosen ?? tops[0]?.[0]);
}

// Only what is in sight, and as much above and below it, is drawn: a graph may have thousands of rows.
function paint() {
  const high = picture.parentElement.clientHeight / at.scale, start = -at.y / at.scale;
  const [from, to] = (painted = [start - high, start + 2 * high]);
  const inSight = (top, bottom) => bottom >= from && top <= to;
  view.replaceChildren();
  make(view, "text", { class: "heading", x: LEFT, y: TOP - 16 }, "forward ↓");
  if (two) make(view, "text", { class: "heading", x: RIGHT, y: TOP - 16 }, "backward ↑");
  for (const { top, bottom, depth } of frames) {
    const inset = G.inset * depth;
    if (inSight(top, bottom)) make(view, "rect", { class: "frame", x: inset, y: top, width: WIDTH - 2 * inset, height: bottom - top, rx: 6 });
  }
  for (const [kind, top, bottom, d] of drawn) if (inSight(top, bottom + G.row)) make(view, "path", { class: `edge ${kind}`, d });
  for (const [number, y, frame] of tops) {
    if (!inSight(y, y + G.row)) continue;
    if (!frame) {
      drawRow(number, y);
      continue;
    }
    const head = item(number, "opens", groups[number]);
    head.setAttribute("aria-expanded", "true");
    make(head, "text", { class: "frame-name opens", x: LEFT, y: y + 17 }, `▾ ${groups[number].short}`);
    make(head, "rect", { class: "hit", x: LEFT - 3, y: y + 3, width: G.box, height: G.head - 5, rx: 4 });
  }
  mark();
}

const find = (number) => view.querySelector(`[data-group="${number}"]`);
const placeOf = (number) => tops.findIndex(([one]) => one === number);

// ---- what a module holds

function gathered(number, side) {
  const group = groups[number];
  return group.children.length ? group.children.flatMap((child) => gathered(child, side)) : group[side];
}

function say(tag, words, style) {
  const made = document.createElement(tag);
  made.textContent = words;
  if (style) made.className = style;
  return made;
}

function tell(number) {
  const group = groups[number], told = [say("h2", group.name ? `${group.name}${group.kind === "part" ? `: ${group.short}` : ""}` : group.short)];
  if (group.gates) told.push(say("p", `gates and pools: ${group.gates}`));
  for (const side of ["forward", "backward"]) {
    const nodes = gathered(number, side);
    if (!nodes.length) continue;
    const work = side === "forward" ? group.workText : group.backText;
    told.push(say("h3", `${side}: ${nodes.length} node${nodes.length > 1 ? "s" : ""}${work ? `, ${work} multiply-adds` : ""}`, side));
    const table = document.createElement("table");
    for (const [operator, name, shape, figure] of nodes.slice(0, LONG)) {
      const row = table.insertRow();
      row.insertCell().append(operator, say("small", name));
      row.insertCell().textContent = shape;
      row.insertCell().textContent = figure;
    }
    told.push(table);
    if (nodes.length > LONG) told.push(say("p", `and ${nodes.length - LONG} more`, "soft"));
  }
  told.push(say("h3", "keys"), keys(), say("p", legend, "soft"));
  panel.replaceChildren(...told);
}

function keys() {
  const made = document.createElement("ul");
  const listed = [["↑ ↓", "move"], ["→ ←", "open, close"], ["+ − 0", "zoom, fit"], ["E C", "open, close all"], ["Ctrl + wheel", "zoom"]];
  for (const [key, what] of listed) {
    const one = made.appendChild(document.createElement("li"));
    one.append(say("kbd", key), ` ${what}`);
  }
  return made;
}

function choose(number) {
  if (number === undefined) return;
  chosen = placeOf(number) >= 0 ? number : shown(number);
  mark();
  tell(chosen);
}

function mark() {
  for (const one of view.querySelectorAll("[data-group]")) {
    const is = Number(one.dataset.group) === chosen;
    one.classList.toggle("chosen", is);
    one.setAttribute("tabindex", is ? 0 : -1);
  }
}

// ---- opening and closing: what was clicked stays where it is

const topOf = (number) => tops[placeOf(number)][1];

function toggle(number) {
  if (!groups[number].children.length) return;
  const before = topOf(number);
  if (!opened.delete(number)) opened.add(number);
  chosen = number;
  draw();
  at.y += (before - topOf(number)) * at.scale;
  move();
  find(number)?.focus({ preventScroll: true });
}

function openAll(open) {
  groups.forEach((group, number) => { if (number && group.children.length) open ? opened.add(number) : opened.delete(number); });
  draw();
  fit();
}

// ---- moving and zooming

function move() {
  const { clientWidth: wide, clientHeight: high } = picture.parentElement, { scale } = at;
  at.x = Math.min(wide - 60, Math.max(60 - WIDTH * scale, at.x));
  at.y = Math.min(high - 60, Math.max(60 - height * scale, at.y));
  view.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${scale})`);
  const start = -at.y / scale, had = view.contains(document.activeElement);
  if (start >= painted[0] && start + high / scale <= painted[1]) return;
  paint();
  if (had) find(chosen)?.focus({ preventScroll: true });
}

function zoom(factor, x = picture.clientWidth / 2, y = picture.clientHeight / 2) {
  const scale = Math.min(4, Math.max(0.05, at.scale * factor)), grown = scale / at.scale;
  at = { x: x - (x - at.x) * grown, y: y - (y - at.y) * grown, scale };
  move();
}

function fit() {
  const scale = Math.min(1.25, picture.parentElement.clientWidth / (WIDTH + 16));
  at = { x: (picture.parentElement.clientWidth - WIDTH * scale) / 2, y: 4, scale };
  move();
}

function reveal(number) {
  const y = at.y + topOf(number) * at.scale, low = picture.clientHeight - G.row * at.scale - 20;
  if (y < 20 || y > low) {
    at.y += Math.min(Math.max(20, y), low) - y;
    move();
  }
}

let grip = null;
picture.addEventListener("pointerdown", (event) => {
  if (event.button === 0) grip = { x: event.clientX, y: event.clientY, moved: false };
});
picture.addEventListener("pointermove", (event) => {
  if (!grip) {
    const over = event.target.closest("[data-group]");
    if (over && Number(over.dataset.group) !== chosen) choose(Number(over.dataset.group));
    return;
  }
  const x = event.clientX - grip.x, y = event.clientY - grip.y;
  if (!grip.moved && Math.hypot(x, y) < 4) return;
  if (!grip.moved) picture.setPointerCapture(event.pointerId);
  picture.classList.add("dragged");
  at = { ...at, x: at.x + x, y: at.y + y };
  grip = { x: event.clientX, y: event.clientY, moved: true };
  move();
});
const release = () => { picture.classList.remove("dragged"); grip = null; };
picture.addEventListener("pointerup", (event) => {
  const over = grip && !grip.moved && event.target.closest("[data-group]");
  release();
  if (over) toggle(Number(over.dataset.group));
});
picture.addEventListener("pointercancel", release);
picture.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (event.ctrlKey || event.metaKey) {
    const place = picture.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - place.left, event.clientY - place.top);
  } else {
    const step = event.deltaMode === 1 ? 16 : 1;
    at = { ...at, x: at.x - step * event.deltaX, y: at.y - step * event.deltaY };
    move();
  }
}, { passive: false });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
  const go = (number) => { choose(number); reveal(chosen); find(chosen)?.focus({ preventScroll: true }); };
  const step = (by) => go(tops[Math.min(tops.length - 1, Math.max(0, placeOf(chosen) + by))][0]);
  const parent = groups[chosen]?.parent;
  const actions = {
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    Home: () => step(-tops.length),
    End: () => step(tops.length),
    ArrowRight: () => (opened.has(chosen) ? step(1) : toggle(chosen)),
    ArrowLeft: () => (opened.has(chosen) ? toggle(chosen) : parent && go(parent)),
    Enter: () => toggle(chosen),
    " ": () => toggle(chosen),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    0: fit,
    e: () => openAll(true),
    c: () => openAll(false),
  };
  const action = tops.length && actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

document.getElementById("all").addEventListener("click", () => openAll(true));
document.getElementById("none").addEventListener("click", () => openAll(false));
document.getElementById("in").addEventListener("click", () => zoom(1.25));
document.getElementById("out").addEventListener("click", () => zoom(0.8));
document.getElementById("fit").addEventListener("click", fit);
window.addEventListener("resize", move);
document.getElementById("note").textContent = note;
draw();
fit();
