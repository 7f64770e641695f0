// MemoryExplorer: step through what a memory holds. `explorer.py` describes the payload.
//
// One ES module without dependencies. As a widget, Jupyter calls the default export's `render`; any other page calls `show`; in a file
// of its own, `openPage()` runs at the end. Words of a document reach the page as text nodes, attributes and canvas text only, never
// as markup.
//
// What is shown depends on a few values in a `model`, which either is the widget's (and so is Python's) or lives in the page:
// step (segment shown), layer and head (null: the mean), token and slot (what is pinned, null: nothing). A part of the view has an
// element and some of: draw(), which paints its canvases, called whenever anything is another; after all of these step(), called when
// the segment, layer or head is another, or point(), called when only what is pointed at is.
// Parts change their elements in place: making new ones at every step would be slower and would lose the keyboard's focus.

const SHOWN = 0.1; // parts of a slot below this share are not named in words, as in MemoryTrace.in_words
const WINDOW = 8; // earlier segments that "text before" lists

// Okabe & Ito 2008: a token's colour, the same in every slot; with a pattern for every further round. Ink: what is readable on it.
const ORIGINS = [["#E69F00", "#000"], ["#56B4E9", "#000"], ["#009E73", "#000"], ["#F0E442", "#000"],
  ["#0072B2", "#fff"], ["#D55E00", "#000"], ["#CC79A7", "#000"]]; // prettier-ignore
const PATTERNS = [null, 1, -1, 0]; // stripes: none, leaning to the right, to the left, upright
// Shares up to 1, growing darker on light and lighter on dark (there: as cividis), so that they survive colour blindness and a copier.
// The least one differs from an empty cell at sight.
const RAMPS = { light: ["9fb1cf", "7c93b8", "56709f", "2a4678", "00224e"],
  dark: ["4a5f8c", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"] };

const DARK = `color-scheme: dark; --paper: #14171c; --card: #1b1f26; --ink: #e8eaed; --soft: #aab2be; --line: #363d49; --fill: #252b35;
  --edge: #747e8d; --accent: #74c4f4; --mark: #17384d; --grey: #4a515e; --greyer: #3a414d;`;
const CSS = `
.mgx { color-scheme: light; --paper: #fbfbf9; --card: #fff; --ink: #1d2129; --soft: #565e6b; --line: #dcdfe4; --fill: #f1f2f4;
  --edge: #868e9a; --accent: #00639b; --mark: #e3f1fa; --grey: #d5d8dd; --greyer: #e6e8eb;
  background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  padding: 16px; border-radius: 10px; box-sizing: border-box; outline: none; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .mgx:not([data-theme=light]) { ${DARK} } }
.mgx[data-theme=dark] { ${DARK} }
.mgx *, .mgx *::before { box-sizing: border-box; }
.mgx :is(h1, h2, h3, h4, p, ul, ol, table) { margin: 0; padding: 0; color: inherit; font-size: inherit; line-height: inherit; }
.mgx .mgx-title { font-size: 20px; font-weight: 650; line-height: 1.3; }
.mgx .mgx-h { font-size: 14px; font-weight: 650; }
.mgx .mgx-soft { color: var(--soft); font-size: 13px; }
.mgx .mgx-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.mgx :is(button, select, input) { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--edge); border-radius: 7px;
  min-height: 34px; padding: 2px 8px; margin: 0; }
.mgx button { cursor: pointer; }
.mgx button:hover { background: var(--mark); }
.mgx button[aria-disabled=true] svg { opacity: .35; }
.mgx :focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
.mgx :is(button, select, summary, [tabindex]) { scroll-margin: calc(var(--top, 0px) + 8px) 0 8px; } /* not under a bar that sticks */
.mgx .mgx-bar-top * { scroll-margin: 0; }
.mgx input[type=range] { flex: 1 1 160px; min-width: 120px; padding: 0; accent-color: var(--accent); }
.mgx input[type=number] { width: 5.5em; }
.mgx input[type=checkbox] { min-height: 0; width: 16px; height: 16px; accent-color: var(--accent); vertical-align: -3px; }
.mgx-bar-top { position: sticky; top: 0; z-index: 3; display: flex; flex-wrap: wrap; gap: 8px 10px; align-items: center; margin: 12px 0;
  padding: 8px 10px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.mgx-bar-top .mgx-group { display: flex; gap: 4px; }
.mgx-bar-top button { width: 38px; padding: 0; }
.mgx-bar-top button svg { width: 18px; height: 18px; fill: currentColor; vertical-align: -4px; }
.mgx-bar-top label { display: inline-flex; gap: 6px; align-items: center; color: var(--soft); font-size: 13px; }
.mgx-bar-top label > * { color: var(--ink); font-size: 14px; }
.mgx-bar-top button.mgx-play { width: 52px; background: var(--accent); color: var(--card); border-color: var(--accent); }
.mgx-bar-top button.mgx-play:hover { filter: brightness(1.15); background: var(--accent); }
.mgx-panes { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
.mgx-pane, .mgx-main { display: grid; gap: 12px; grid-template-columns: minmax(0, 1fr); align-content: start; }
.mgx-card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px; min-width: 0; }
.mgx-card > .mgx-soft { margin-bottom: 8px; }
.mgx-card > .mgx-soft:last-child { margin-bottom: 0; }
.mgx-overview canvas { display: block; width: 100%; cursor: pointer; border-radius: 4px; }
.mgx-says { font-size: 15px; }
.mgx-tokens { margin: 0 -1px; }
.mgx-token { display: inline-block; max-width: min(24em, 100%); overflow: hidden; text-overflow: ellipsis; margin: 1px 1.5px 3px; vertical-align: top; padding: 1px 5px 0; border: 1px solid var(--line); border-bottom: 3px solid var(--line);
  border-radius: 5px; background: var(--card); cursor: pointer; white-space: pre; }
.mgx-token[hidden] { display: none; }
.mgx-token small { margin-left: 3px; font-size: 10.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.mgx-token.mgx-of { background: var(--mark); }
.mgx-token.mgx-of small { color: var(--ink); font-weight: 700; }
.mgx .mgx-at { outline: 2px dashed var(--accent); outline-offset: 1px; }
.mgx [aria-selected=true] { outline: 2px solid var(--accent); outline-offset: 1px; background: var(--mark); }
.mgx .mgx-before { margin-top: 10px; }
.mgx .mgx-before > div { display: grid; grid-template-columns: 7.5em minmax(0, 1fr); gap: 4px 8px; margin-top: 6px; align-items: start; }
.mgx-before button { min-height: 26px; padding: 0 6px; font-size: 13px; }
.mgx-before p { color: var(--soft); }
.mgx-before mark { background: var(--mark); color: var(--ink); font-weight: 600; border-radius: 3px; padding: 0 2px; }
.mgx summary { cursor: pointer; color: var(--soft); font-size: 13px; min-height: 24px; }
.mgx-slot { display: grid; grid-template: "name bar gone" "name says gone" / 4.2em minmax(0, 1fr) 6em; gap: 1px 8px; padding: 4px 6px;
  border-left: 4px solid transparent; border-top: 1px solid var(--line); cursor: pointer; align-items: center; }
.mgx-slot:hover { background: var(--fill); }
.mgx-slot.mgx-holds { border-left-color: var(--accent); background: var(--mark); }
.mgx-slot > :nth-child(1) { grid-area: name; font-weight: 600; font-size: 13px; }
.mgx-slot > :nth-child(2) { grid-area: bar; }
.mgx-slot > :nth-child(3) { grid-area: says; font-size: 13px; color: var(--soft); }
.mgx-slot > :nth-child(4) { grid-area: gone; text-align: right; font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums; }
.mgx-slot.mgx-moved > :nth-child(3), .mgx-slot.mgx-moved > :nth-child(4) { color: var(--ink); }
.mgx-slot b { display: block; color: var(--accent); }
:is(.mgx-wide.mgx-one, .mgx-narrow) .mgx-holds > :nth-child(4) > span { display: none; } /* a second line would move the row from under the pointer */
.mgx-bar { display: block; width: 100%; height: 20px; border-radius: 4px; background: var(--fill); }
.mgx-side { display: contents; }
.mgx-panel > :first-child { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
.mgx-panel > div > :is(h3, h4, h5, h6) { font-size: 15px; font-weight: 650; }
.mgx-panel > div > :is(h3, h4, h5, h6) bdi { white-space: pre-wrap; display: inline-block; max-width: 100%; max-height: 6em; overflow: hidden; vertical-align: top; }
.mgx-panel > div + div { margin-top: 12px; padding-top: 12px; border-top: 1px solid var(--line); }
.mgx-panel ul { list-style: none; margin: 2px 0 8px; }
.mgx-panel li { display: grid; grid-template-columns: minmax(5em, 1fr) 34% 5em; gap: 8px; align-items: center; margin: 2px 0; }
.mgx-panel li > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.mgx-panel li > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: pre; text-align: left; }
.mgx-panel button { min-height: 26px; padding: 0 7px; max-width: 100%; }
.mgx-meter { height: 9px; background: var(--fill); border-radius: 3px; }
.mgx-meter i { display: block; height: 100%; border-radius: 3px; background: var(--accent); min-width: 1px; }
.mgx-sub { font-size: 13px; font-weight: 600; margin-top: 6px; }
.mgx-matrices { display: flex; flex-wrap: wrap; gap: 12px; }
.mgx-matrices > * { flex: 1 1 var(--wide, 300px); max-width: 100%; }
.mgx-scroll { overflow-x: auto; border-radius: 4px; }
.mgx-scroll canvas { display: block; }
.mgx-scale i { display: inline-block; width: 4em; height: 12px; vertical-align: -2px; border-radius: 2px; background: var(--fill); border: 1px solid var(--line); }
.mgx-scale i:first-child { width: 12px; }
.mgx-read-out { min-height: 1.5em; font-size: 13px; }
.mgx table { border-collapse: collapse; font-size: 13px; margin: 8px 0 16px; min-width: 560px; background: none; }
.mgx caption { text-align: left; font-weight: 650; padding: 4px 0; }
.mgx :is(th, td) { text-align: left; vertical-align: top; padding: 3px 10px 3px 0; border-top: 1px solid var(--line); background: none; }
.mgx td.mgx-number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.mgx kbd { font: 12px ui-monospace, monospace; border: 1px solid var(--line); border-bottom-width: 2px; border-radius: 4px; padding: 0 4px;
  background: var(--card); color: var(--ink); white-space: nowrap; }
.mgx-help { margin-top: 12px; line-height: 1.9; }
.mgx-wide .mgx-panes { grid-template-columns: repeat(var(--panes), minmax(0, 1fr)); gap: 12px 16px; }
.mgx-wide:not(.mgx-one) .mgx-pane { grid-row: span 6; grid-template-rows: subgrid; }
.mgx-wide.mgx-one .mgx-pane { grid-template-columns: minmax(0, 1.75fr) minmax(300px, 1fr); }
.mgx-wide.mgx-one .mgx-pane > * { grid-column: 1 / -1; }
.mgx-wide.mgx-one .mgx-pane > .mgx-main { grid-column: 1; }
.mgx-wide.mgx-one .mgx-pane > .mgx-side { grid-column: 2; display: block; } /* the panel sticks inside, not over what follows */
.mgx-wide.mgx-one .mgx-panel { position: sticky; top: calc(var(--top, 66px) + 8px); }
.mgx-wide.mgx-one .mgx-slot { grid-template: "name bar says gone" / 3.9em minmax(0, 7fr) minmax(0, 14fr) 6em; gap: 0 10px; }
.mgx-narrow .mgx-bar-top { position: static; }
.mgx-narrow :is(button, select, input, summary, [tabindex]) { scroll-margin: 8px 0 calc(34vh + 8px); }
.mgx-narrow .mgx-panel * { scroll-margin: 8px 0; }
.mgx-narrow .mgx-panel { position: sticky; bottom: 0; z-index: 2; max-height: 34vh; overflow-y: auto; box-shadow: 0 -4px 14px #0003; }
.mgx-narrow .mgx-panel.mgx-empty { position: static; box-shadow: none; }
.mgx-narrow .mgx-slot { grid-template: "name bar" "gone says" / 5.6em minmax(0, 1fr); }
.mgx-narrow .mgx-slot > :nth-child(4) { text-align: left; align-self: start; }
.mgx-page > .mgx { margin: 0 auto; max-width: 1320px; min-height: 100vh; border-radius: 0; }
`;

const ICONS = { first: "M3 3h2.5v14H3zM17 3v14L6.5 10z", back: "M14.5 3v14L4.5 10z", play: "M5 2.5v15L17 10z", pause: "M4 3h4.2v14H4zM11.8 3H16v14h-4.2z",
  next: "M5.5 3v14l10-7z", last: "M14.5 3H17v14h-2.5zM3 3v14l10.500-7z" };

// ---- words and numbers ----

// What is not seen, or rearranges what stands around; not joiners and selectors, which shape what stands beside them.
const CONTROLS = /(?![\u200c\u200d\p{VS}])[\p{Cc}\p{Cf}\p{Cs}\p{Z}\p{DI}]/gu;
const NAMED = { "\n": "↵", "\t": "⇥", "\u007f": "␡", "\u00a0": "⍽" };

/** A token with nothing invisible left in it: a space is ·, a newline ↵, and no control character can rearrange what stands around. */
const visible = (text) => text === "" ? "∅" : text.replace(/ /g, "·").replace(CONTROLS, (c) => NAMED[c] ??
  (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`));

/** The same for running text: without the space that many tokens begin with, and not longer than 30 characters. */
function named(text) {
  const characters = [...visible(text.length > 1 && text[0] === " " ? text.slice(1) : text)];
  return characters.length > 30 ? characters.slice(0, 29).join("") + "…" : characters.join("");
}

const isolated = (text) => `\u2068${text}\u2069`; // for strings: keeps right-to-left words from rearranging what stands around
const percent = (share) => share >= 0.995 && share < 1 ? "over 99%" : share > 0 && share < 0.005 ? "under 1%" : `${(100 * share).toFixed(0)}%`;
const brief = (share) => share >= 0.995 && share < 1 ? ">99" : share > 0 && share < 0.005 ? "<1" : (100 * share).toFixed(0);
const english = new Intl.NumberFormat("en"), count = (number) => english.format(number);
const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
const size = (number) => number === 0 ? "0" : number < 0.01 || number >= 1000 ? number.toExponential(1) : number.toPrecision(3);

// ---- payload → facts ----

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array };

async function unpack(packed) {
  const text = atob(packed.data), deflated = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) deflated[i] = text.charCodeAt(i);
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Trace(packed, await new Response(stream).arrayBuffer());
}

/** A trace and the questions that the view asks it. Segments, slots and tokens are counted from 0; at `step` that segment has been read. */
class Trace {
  constructor(packed, buffer) {
    for (const [name, { type, shape, offset }] of Object.entries(packed.arrays)) {
      this[name] = new TYPES[type](buffer, offset, shape.reduce((a, b) => a * b, 1));
    }
    Object.assign(this, { L: packed.segmentLength, layers: packed.readLayers, exact: packed.valuesMix, words: packed.words });
    [this.S, this.M] = packed.arrays.moved.shape;
    this.K = packed.arrays.sources.shape[2];
    [this.R, this.H, this.T] = packed.arrays.read.shape;
    this.N = packed.arrays.next.shape[1];
    this.since = new Int32Array(this.S * this.M); // after how many segments the slot became what it is
    for (let i = 0; i < this.since.length; i++) {
      this.since[i] = this.moved[i] > 0 ? Math.floor(i / this.M) + 1 : i < this.M ? 0 : this.since[i - this.M];
    }
    this.chooseColours();
  }

  /** Tokens get looks in the order in which they first make up a tenth of a slot: of any 28 that follow each other, no two are alike. */
  chooseColours() {
    this.order = new Int32Array(this.T).fill(-1);
    let next = 0;
    for (let i = 0; i < this.sources.length; i++) {
      if (this.shares[i] >= SHOWN * 65535 && this.order[this.sources[i]] === -1) this.order[this.sources[i]] = next++;
    }
  }

  /** A token's colour and pattern; null for one that never makes up a tenth of a slot. */
  colour(token) {
    const order = this.order[token];
    return order < 0 ? null : { fill: ORIGINS[order % 7][0], ink: ORIGINS[order % 7][1], pattern: PATTERNS[Math.floor(order / 7) % 4] };
  }

  text(token) { return this.words[this.tokens[token]]; }
  segment(token) { return Math.floor(token / this.L); }
  length(step) { return Math.min(this.L, this.T - step * this.L); }
  wrote(step, slot, column) { return this.write[(step * this.M + slot) * (this.L + 1) + column] / 65535; } // column 0: kept
  initialShare(step, slot) { return this.initial[(step + 1) * this.M + slot] / 65535; }
  restShare(step, slot) { return this.rest[(step + 1) * this.M + slot] / 65535; }

  /** What a slot is made of: [{token, share}], strongest first. */
  made(step, slot) {
    const parts = [], row = ((step + 1) * this.M + slot) * this.K;
    for (let i = row; i < row + this.K && this.sources[i] >= 0; i++) parts.push({ token: this.sources[i], share: this.shares[i] / 65535 });
    return parts;
  }

  /** All that a slot is made of: [{token, share}], strongest first, then [{name, short, share}]. */
  parts(step, slot) {
    return [...this.made(step, slot), { name: "other tokens", short: "other", share: this.restShare(step, slot) },
      { name: "its initial value", short: "initial", share: this.initialShare(step, slot) }];
  }

  /** Which slots hold a token, and how much: [{slot, share}], strongest first. */
  holders(step, token) {
    const found = [], start = (step + 1) * this.M * this.K;
    for (let i = 0; i < this.M * this.K; i++) {
      if (this.sources[start + i] === token) found.push({ slot: Math.floor(i / this.K), share: this.shares[start + i] / 65535 });
    }
    return found.sort((a, b) => b.share - a.share);
  }

  /** How much a token read from a slot, in one layer and head, or in the mean over those that are null. */
  readShare(token, slot, layer, head) {
    const at = this.layers.indexOf(layer);
    let sum = 0, of = 0;
    for (let r = at < 0 ? 0 : at; r < (at < 0 ? this.R : at + 1); r++) {
      for (let h = head ?? 0; h < (head === null ? this.H : head + 1); h++, of++) sum += this.read[((r * this.H + h) * this.T + token) * this.M + slot];
    }
    return sum / of / 255;
  }

  /** What a slot holds, in the words of MemoryTrace.in_words: strings, and {word} for what comes from the text. */
  sentence(step, slot) {
    const says = [];
    this.parts(step, slot).sort((a, b) => b.share - a.share).forEach(({ token, share, name }, i) => {
      if (i === 0 || share >= SHOWN) says.push(`${percent(share)} `, ...(name ? [name] : ["“", { word: named(this.text(token)) }, `” (segment ${this.segment(token)})`]), ", ");
    });
    const unchanged = step + 1 - this.since[step * this.M + slot];
    return [...says, unchanged ? `unchanged for ${many(unchanged, "segment")}` : `changed in segment ${step}`];
  }

  /** What a segment did to the memory, in a sentence. */
  event(step) {
    const changed = [];
    for (let slot = 0; slot < this.M; slot++) {
      if (!(this.moved[step * this.M + slot] > 0)) continue;
      let column = 1;
      for (let c = 2; c <= this.length(step); c++) if (this.wrote(step, slot, c) > this.wrote(step, slot, column)) column = c;
      changed.push({ slot, share: this.wrote(step, slot, column), token: step * this.L + column - 1 });
    }
    if (!changed.length) return [`Segment ${step} changed nothing: all ${this.M} slots are as they were.`];
    changed.sort((a, b) => b.share - a.share);
    const says = [`Segment ${step} changed ${many(changed.length, "slot")} of ${this.M}: `];
    changed.slice(0, 3).forEach(({ slot, share, token }, i) =>
      says.push(`${i ? "; " : ""}slot ${slot} took `, ...(share ? [`${percent(share)} from “`, { word: named(this.text(token)) }, "”"] : ["nothing from its tokens"])));
    return [...says, changed.length > 3 ? `; and ${changed.length - 3} more.` : "."];
  }
}

// ---- elements ----

/** An element with attributes, listeners ("on…") and children; strings become text. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const bdi = (text) => h("bdi", {}, text);
const nodes = (pieces) => pieces.map((piece) => piece.word === undefined ? piece : bdi(piece.word));
const flat = (pieces) => pieces.map((piece) => piece.word === undefined ? piece : isolated(piece.word)).join("");
const hidden = (...children) => h("span", { class: "mgx-hidden" }, ...children);

function icon(name) {
  const make = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const svg = make("svg"), path = make("path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A card with a heading, which is a group of that name: as landmarks, those of two explorers on a page would be hard to tell apart. */
function card(view, pane, title, ...children) {
  const id = `mgx-${Math.random().toString(36).slice(2)}`; // Jupyter loads this module anew for every widget: counting would repeat
  const heading = h(`h${view.level + 1}`, { class: "mgx-h", id }, title, pane.name && hidden(`, ${pane.name}`));
  return h("div", { class: "mgx-card", role: "group", "aria-labelledby": id }, heading, ...children);
}

/** Changes the only text inside an element; in place where it can, which spares the browser new styles. */
function setText(element, text) {
  if (!element.firstChild) element.append(text);
  else if (element.firstChild.data !== text) element.firstChild.data = text;
}

/** Arrow keys, Home, End, Enter and Space in a list of which only one element is in the tab order. */
function roving(list, items, { vertical, pin }) {
  const go = (item) => {
    items().forEach((other) => { other.tabIndex = other === item ? 0 : -1; });
    item.focus();
  };
  list.addEventListener("keydown", (event) => {
    const all = items(), at = all.indexOf(event.target.closest("[role=option]"));
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { Home: -at, End: all.length - 1 - at, ArrowDown: vertical ? 1 : rowStep(all, at, 1), ArrowUp: vertical ? -1 : rowStep(all, at, -1),
      ...(vertical ? {} : { ArrowLeft: -1, ArrowRight: 1 }) };
    if (event.key in steps) go(all[Math.max(0, Math.min(all.length - 1, at + steps[event.key]))]);
    else if (event.key === "Enter" || event.key === " ") pin(at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  list.addEventListener("click", (event) => {
    const at = items().indexOf(event.target.closest("[role=option]"));
    if (at >= 0) { go(items()[at]); pin(at, event); }
  });
}

/** Fills an element anew. If one of its buttons had the keyboard's focus, the one in its place gets it, and `otherwise` if there is none. */
function refill(element, fill, otherwise) {
  const buttons = () => [...element.querySelectorAll("button")], at = buttons().indexOf(element.getRootNode().activeElement);
  fill();
  if (at >= 0) (buttons()[Math.min(at, buttons().length - 1)] ?? otherwise).focus();
}

/** How far to the item that stands nearest in the line above (−1) or below (1). */
function rowStep(items, at, direction) {
  const x = (item) => item.offsetLeft + item.offsetWidth / 2, here = items[at];
  let best = at, line = null;
  for (let i = at + direction; i >= 0 && i < items.length; i += direction) {
    if (items[i].offsetTop === here.offsetTop) continue;
    line ??= items[i].offsetTop;
    if (items[i].offsetTop !== line) break;
    if (best === at || Math.abs(x(items[i]) - x(here)) < Math.abs(x(items[best]) - x(here))) best = i;
  }
  return best - at;
}

// ---- colours ----

const mix = (a, b, share) => a.map((value, i) => Math.round(value + (b[i] - value) * share));
const channels = (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
const luminance = (rgb) => rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);

/** The page's colours for canvases: one for each of 256 shares, and what can be read on it; greys for what was kept. */
function palette(root) {
  const style = getComputedStyle(root), get = (name) => style.getPropertyValue(name).trim(), dark = style.colorScheme === "dark";
  const stops = RAMPS[dark ? "dark" : "light"].map(channels), card = channels(get("--fill").slice(1)), grey = channels(dark ? "949eae" : "7f8896");
  const shares = { ramp: [], css: [], on: [] }, kept = { css: [], on: [] };
  for (let level = 0; level < 256; level++) {
    const place = level / 255 * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2);
    shares.ramp.push(level === 0 ? card : mix(stops[i], stops[i + 1], place - i));
    for (const [scale, colour] of [[shares, shares.ramp[level]], [kept, level === 0 ? card : mix(card, grey, 0.45 + 0.55 * level / 255)]]) {
      scale.css.push(`rgb(${colour})`);
      scale.on.push(luminance(colour) > 0.18 ? "#000" : "#fff");
    }
  }
  return { shares, kept, ...Object.fromEntries(["ink", "soft", "fill", "card", "grey", "greyer", "accent"].map((name) => [name, get(`--${name}`)])) };
}

/** A canvas of so many CSS pixels, cleared, whatever the screen's density. */
function prepare(canvas, width, height) {
  const density = Math.min(window.devicePixelRatio || 1, 2), context = canvas.getContext("2d");
  if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    canvas.style.height = `${height}px`;
    context.font = "12px system-ui, sans-serif"; // only here: it makes the browser work out the styles of the whole page
    context.textBaseline = "middle";
  }
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Stripes across a box at the top of a canvas, leaning to the right (1), to the left (−1), or upright (0). */
function stripes(c, left, width, height, lean, colour) {
  c.save();
  c.beginPath();
  c.rect(left, 0, width, height);
  c.clip();
  c.beginPath();
  for (let x = left - Math.abs(lean) * height; x < left + width; x += lean ? 11 : 7) {
    c.moveTo(x, lean < 0 ? 0 : height);
    c.lineTo(x + Math.abs(lean) * height, lean < 0 ? height : 0);
  }
  c.strokeStyle = colour;
  c.lineWidth = 3;
  c.stroke();
  c.restore();
}

/** As much of a word as so many pixels of a canvas have room for. */
function fitted(c, word, room) {
  const { width } = c.measureText(word), characters = [...word];
  return width <= room ? word : characters.slice(0, Math.max(1, Math.floor(characters.length * room / width) - 1)).join("") + "…";
}

/** What the colours of cells stand for: how 0 looks, and from a little to all. kept: there are greys too. */
function scale(view, kept) {
  const bars = [h("i"), ...(kept ? [h("i")] : [])], gradient = (css) => `linear-gradient(90deg, ${css.slice(1).filter((_, i) => i % 32 === 0 || i === 254)})`;
  let painted = null;
  return {
    element: h("p", { class: "mgx-scale mgx-soft", "aria-hidden": "true" }, "0 ", h("i"), " · a little ", bars[0], " all", kept ? [" · kept, a little ", bars[1], " all"] : []),
    draw() {
      if (painted === view.colours) return;
      painted = view.colours;
      bars.forEach((bar, i) => { bar.style.background = gradient([painted.shares, painted.kept][i].css); });
    },
  };
}

// ---- the parts of the view ----

/** All segments at once: which of them wrote into which slot. */
function overview(view, pane) {
  const { trace } = pane, { S, M } = trace, rowHeight = Math.max(2, Math.min(9, Math.floor(128 / M))), height = M * rowHeight;
  const canvas = h("canvas", { "aria-hidden": "true" }), note = h("p", { class: "mgx-read-out mgx-soft", "aria-hidden": "true" });
  const legend = scale(view, false);
  let base = null, painted = null, width = 0;

  function paintBase() { // at most one column for a pixel: of the segments that share one, the strongest write is shown
    const columns = Math.min(S, Math.max(1, Math.floor(width))), levels = new Uint8Array(columns * M);
    for (let s = 0; s < S; s++) {
      const x = Math.floor(s * columns / S);
      for (let m = 0; m < M; m++) {
        const level = Math.max(Math.round(255 * (1 - trace.wrote(s, m, 0))), trace.moved[s * M + m] > 0 ? 1 : 0);
        if (level > levels[m * columns + x]) levels[m * columns + x] = level;
      }
    }
    const image = new ImageData(columns, M);
    levels.forEach((level, i) => image.data.set([...view.colours.shares.ramp[level], 255], 4 * i));
    painted = view.colours;
    base = h("canvas", { width: columns, height: M });
    base.getContext("2d").putImageData(image, 0, 0);
  }

  function draw() {
    legend.draw();
    if (!width) return;
    if (!base || painted !== view.colours) paintBase();
    const c = prepare(canvas, width, height + 20), x = (s) => s * width / S, w = Math.max(width / S, 3);
    c.fillStyle = view.colours.fill;
    c.fillRect(0, 0, width, height);
    c.imageSmoothingEnabled = false;
    c.drawImage(base, 0, 0, width, height);
    c.globalAlpha = 0.72; // segments that have not been read yet
    c.fillStyle = view.colours.fill;
    c.fillRect(x(view.step + 1), 0, width, height);
    c.globalAlpha = 1;
    c.strokeStyle = view.colours.accent;
    c.lineWidth = 2;
    if (view.slot !== null && view.slot < M) {
      c.strokeRect(1, view.slot * rowHeight, width - 2, rowHeight);
      for (const { token, share } of trace.made(view.step, view.slot).reverse()) { // where its tokens come from: the taller, the more
        const segment = trace.segment(token), tall = 4 + 15 * share;
        c.fillStyle = trace.colour(token)?.fill ?? view.colours.greyer;
        c.strokeStyle = view.colours.ink;
        c.lineWidth = 1;
        c.fillRect(x(segment), height + 20 - tall, w, tall);
        c.strokeRect(x(segment) + 0.5, height + 20.5 - tall, w - 1, tall);
      }
    }
    if (view.token !== null) { // the pointed token's segment: a triangle below it
      const middle = x(trace.segment(view.token)) + w / 2;
      c.fillStyle = view.colours.ink;
      c.beginPath();
      c.moveTo(middle, height + 1); c.lineTo(middle - 5, height + 10); c.lineTo(middle + 5, height + 10);
      c.fill();
    }
    c.strokeStyle = view.colours.ink;
    c.lineWidth = 2;
    c.strokeRect(Math.max(1, x(view.step)), 1, Math.min(w, width - x(view.step) - 1), height - 2);
  }

  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    return { s: Math.max(0, Math.min(S - 1, Math.floor((event.clientX - box.left) / box.width * S))), m: Math.floor((event.clientY - box.top) / rowHeight) };
  };
  canvas.addEventListener("click", (event) => view.go(cell(event).s));
  canvas.addEventListener("mousemove", (event) => {
    const { s, m } = cell(event);
    setText(note, m < M ? `segment ${s}, slot ${m}: took ${percent(1 - trace.wrote(s, m, 0))} from its tokens` : `segment ${s}`);
  });
  canvas.addEventListener("mouseleave", () => setText(note, hint));
  const hint = "Point at a cell to read it; choose one to go to its segment.";
  setText(note, hint);
  const element = card(view, pane, "All segments",
    h("p", { class: "mgx-soft" }, "Each row is a slot, each column a segment. A coloured cell: the segment wrote into the slot; the stronger the colour, the more it wrote. ",
      "Below the columns, bars show where the tokens of the slot you point at come from; a triangle shows the segment of the token you point at."), legend.element, canvas, note);
  element.classList.add("mgx-overview");
  view.observeSize(canvas.parentElement, () => { width = canvas.clientWidth; base = null; draw(); });
  return { element, draw };
}

/** The tokens of the segment at hand, and on demand the segments before it. */
function text(view, pane) {
  const { trace } = pane;
  const chips = Array.from({ length: Math.min(trace.L, trace.T) }, (_, i) =>
    h("span", { class: "mgx-token", role: "option", tabindex: i ? -1 : 0, "aria-selected": "false", "data-i": i }, bdi(""), h("small")));
  const list = h("div", { class: "mgx-tokens", role: "listbox", "aria-label": `Tokens${pane.of}` }, chips);
  const before = h("div"), more = h("details", { class: "mgx-before", ontoggle: fillBefore }, h("summary", {}, "Text before this segment"), before);
  const shown = () => chips.slice(0, trace.length(view.step));
  const token = ({ target }) => { const chip = target.closest(".mgx-token"); return chip ? view.step * trace.L + Number(chip.dataset.i) : null; };
  roving(list, shown, { vertical: false, pin: (i) => view.pin("token", view.step * trace.L + i) });
  view.pointing(list, (event) => ({ token: token(event) }));
  const says = h("p", { class: "mgx-says" }), title = h("span");

  function fillBefore() {
    if (!more.open) return;
    const held = heldNow(), rows = [];
    for (let s = Math.max(0, view.step - WINDOW); s < view.step; s++) {
      const words = Array.from({ length: trace.length(s) }, (_, i) => s * trace.L + i)
        .flatMap((t) => [held.has(t) ? h("mark", {}, bdi(named(trace.text(t)))) : bdi(named(trace.text(t))), " "]);
      rows.push(h("button", { type: "button", onclick: () => view.go(s), "aria-label": `go to segment ${s}` }, `segment ${s}`), h("p", {}, words));
    }
    if (view.step > WINDOW) rows.unshift(h("p", { class: "mgx-soft", style: "grid-column: 1 / -1" }, `(${many(view.step - WINDOW, "segment")} before these)`));
    refill(before, () => before.replaceChildren(...(rows.length ? rows : [h("p", { style: "grid-column: 1 / -1" }, "This is the first segment.")])), more.firstChild);
  }

  /** Tokens that make up at least a tenth of a slot: token → [{slot, share}]. */
  function heldNow() {
    const held = new Map();
    for (let slot = 0; slot < trace.M; slot++) {
      for (const { token, share } of trace.made(view.step, slot)) {
        if (share >= SHOWN) held.set(token, [...(held.get(token) ?? []), { slot, share }]);
      }
    }
    return held;
  }

  function point() {
    const start = view.step * trace.L, of = new Map();
    if (view.slot !== null && view.slot < trace.M) trace.made(view.step, view.slot).forEach(({ token, share }) => of.set(token, share));
    const held = heldNow();
    shown().forEach((chip, i) => {
      const t = start + i, slots = held.get(t) ?? [], part = of.get(t);
      chip.className = `mgx-token${part ? " mgx-of" : ""}${t === view.token ? " mgx-at" : ""}`;
      chip.setAttribute("aria-selected", String(t === view.pinned.token));
      setText(chip.lastChild, part ? `${brief(part)}%` : slots.slice(0, 3).map(({ slot }) => slot).join(" ") + (slots.length > 3 ? " …" : ""));
      chip.setAttribute("aria-label", visible(trace.text(t)) + (part ? `, ${percent(part)} of slot ${view.slot}` : "") +
        (slots.length ? `, held by ${slots.map(({ slot, share }) => `slot ${slot}: ${percent(share)}`).join(", ")}` : ""));
      chip.style.borderBottomColor = slots.length ? trace.colour(t).fill : "";
    });
  }

  function step() {
    const start = view.step * trace.L, length = trace.length(view.step);
    const at = chips.findIndex((chip) => chip.tabIndex === 0), focused = chips[at].matches(":focus");
    if (at >= length) { // it is about to vanish
      chips[at].tabIndex = -1;
      chips[length - 1].tabIndex = 0;
      if (focused) chips[length - 1].focus();
    }
    chips.forEach((chip, i) => {
      chip.hidden = i >= length;
      if (i < length) setText(chip.firstChild, visible(trace.text(start + i)));
    });
    setText(title, `Text of segment ${view.step}`);
    says.replaceChildren(...nodes(trace.event(view.step)));
    fillBefore();
    point();
  }
  const element = card(view, pane, title, says,
    h("p", { class: "mgx-soft" }, "The numbers after a token are the slots of which it now makes up a tenth or more. A space is shown as ·, a new line as ↵."), list, more);
  return { element, step, point };
}

/** The slots: a bar of what each is made of, the same in words, and how far the segment moved it. */
function slots(view, pane) {
  const { trace } = pane, rows = Array.from({ length: trace.M }, (_, slot) => {
    const bar = h("canvas", { class: "mgx-bar", "aria-hidden": "true" }), says = h("span"), moved = h("span"), holds = h("b");
    const row = h("div", { class: "mgx-slot", role: "option", tabindex: slot ? -1 : 0, "aria-selected": "false", "data-slot": slot },
      h("span", {}, `slot ${slot}`), bar, says, h("span", {}, moved, holds));
    return { row, bar, says, moved, holds };
  });
  const list = h("div", { role: "listbox", "aria-label": `Slots${pane.of}` }, rows.map(({ row }) => row));
  let width = 0; // of a bar
  const find = ({ target, offsetX }) => {
    const row = target.closest(".mgx-slot"), slot = Number(row?.dataset.slot);
    let end = 0;
    const part = row && target.matches(".mgx-bar") ? trace.parts(view.step, slot).find(({ share }) => (end += share * width) > offsetX) : null;
    return row ? { slot, token: part?.token } : {};
  };
  roving(list, () => rows.map(({ row }) => row), { vertical: true, pin: (slot, event) => {
    view.pin("slot", slot);
    const { token } = event ? find(event) : {};
    if (token !== undefined && view.pinned.slot === slot) view.pin("token", token, true);
  } });
  view.pointing(list, find);

  function draw() {
    const { colours } = view;
    if (width) rows.forEach(({ bar }, slot) => {
      const c = prepare(bar, width, 20);
      let end = 0;
      for (const { token, share, short } of trace.parts(view.step, slot)) {
        const x = Math.round(end), wide = Math.round(end += share * width) - x, initial = short === "initial";
        if (wide <= 0) continue;
        const { fill, ink, pattern } = (short ? null : trace.colour(token)) ?? { fill: colours.greyer, ink: colours.ink, pattern: initial ? 1 : null };
        c.fillStyle = fill;
        c.fillRect(x, 0, wide, 20);
        if (pattern !== null) stripes(c, x, wide, 20, pattern, initial ? colours.grey : ink === "#fff" ? "#0006" : "#fff6");
        if (share >= 0.14) {
          const word = fitted(c, short ?? named(trace.text(token)), wide - 4);
          c.strokeStyle = fill; // keeps the pattern away from the word
          c.lineWidth = 4;
          if (pattern !== null) c.strokeText(word, x + 4, 10.5);
          c.fillStyle = ink;
          c.fillText(word, x + 4, 10.5);
        }
        c.fillStyle = colours.card;
        c.fillRect(x + wide - 1, 0, 1, 20);
        if (token === undefined || token !== view.token) continue;
        c.strokeStyle = colours.ink;
        c.lineWidth = 2;
        c.strokeRect(x + 1, 1, wide - 2, 18);
      }
    });
  }

  function step() {
    rows.forEach(({ row, says, moved }, slot) => {
      const distance = trace.moved[view.step * trace.M + slot];
      row.classList.toggle("mgx-moved", distance > 0);
      setText(moved, distance > 0 ? `moved ${size(distance)}` : "unmoved");
      says.replaceChildren(...nodes(trace.sentence(view.step, slot)));
    });
    point();
  }

  function point() {
    const holding = new Map(view.token === null ? [] : trace.holders(view.step, view.token).map(({ slot, share }) => [slot, share]));
    rows.forEach(({ row, holds }, slot) => {
      row.classList.toggle("mgx-holds", holding.has(slot));
      row.classList.toggle("mgx-at", slot === view.slot);
      row.setAttribute("aria-selected", String(slot === view.pinned.slot));
      setText(holds, holding.has(slot) ? `${percent(holding.get(slot))} of it` : "");
    });
  }
  const element = card(view, pane, "What each slot is made of",
    h("p", { class: "mgx-soft" }, "A token has the same colour and pattern in every slot. Grey with stripes: what is left of the slot’s initial value; grey without stripes: the other tokens, and those that never make up a tenth of a slot.",
      trace.exact ? "" : " This model's rule does not mix token values: what is shown follows from its write attention, which is a summary."), list);
  view.observeSize(list, () => { width = rows[0].bar.clientWidth; draw(); });
  return { element, draw, step, point };
}

/** What is pointed at, or pinned: a token, a slot, or both. */
function panel(view, pane) {
  const { trace } = pane, tokenBlock = h("div"), slotBlock = h("div");
  const meter = (name, share, shown = percent(share)) => h("li", {}, typeof name === "string" ? h("span", {}, name) : name,
    h("span", { class: "mgx-meter", "aria-hidden": "true" }, h("i", { style: `width: ${100 * share}%` })), h("span", {}, shown));
  const list = (title, rows, empty) => [h("p", { class: "mgx-sub" }, title), rows.length ? h("ul", {}, rows) : h("p", { class: "mgx-soft" }, empty)];
  const pinnedNote = (what) => view.pinned[what] === view[what] ? " Pinned." : "";

  function aboutToken(token) {
    const segment = trace.segment(token), here = segment === view.step, read = segment <= view.step;
    const from = Array.from({ length: trace.M }, (_, slot) => ({ slot, share: trace.readShare(token, slot, view.layer, view.head) }))
      .sort((a, b) => b.share - a.share).slice(0, 3);
    const next = Array.from({ length: trace.N }, (_, i) => token * trace.N + i)
      .map((i) => meter(h("span", {}, bdi(visible(trace.words[trace.next[i]])),
        trace.next[i] === trace.tokens[token + 1] ? h("span", { class: "mgx-soft" }, " (came next)") : null), trace.nextShares[i] / 65535));
    const entropy = trace.entropy[token];
    return [
      h(`h${view.level + 2}`, {}, "Token “", bdi(visible(trace.text(token))), "”"),
      h("p", { class: "mgx-soft" }, `segment ${segment}, position ${token % trace.L}.${pinnedNote("token")} `,
        here ? null : h("button", { type: "button", onclick: () => view.go(segment) }, `go to segment ${segment}`)),
      ...list("Slots that hold it now", trace.holders(view.step, token).slice(0, 6).map(({ slot, share }) => meter(`slot ${slot}`, share)),
        read ? `It is not among the ${trace.K} strongest tokens of any slot.` : "It has not been read yet."),
      ...list(`Read from (${view.readName()})`, from.map(({ slot, share }) => meter(`slot ${slot}`, share)), ""),
      ...list("Expected next", next, ""),
      h("p", { class: "mgx-soft" }, `Entropy ${entropy.toFixed(2)} nats: as unsure as a choice among ${size(Math.exp(entropy))} equally likely tokens.`),
    ];
  }

  function aboutSlot(slot) {
    const i = view.step * trace.M + slot, made = trace.parts(view.step, slot).filter(({ share }) => share > 0).map(({ token, share, name }) =>
      meter(name ?? h("button", { type: "button", onclick: () => view.pin("token", token) }, bdi(named(trace.text(token))), ` · segment ${trace.segment(token)}`), share));
    const since = trace.since[i];
    return [
      h(`h${view.level + 2}`, {}, `Slot ${slot}`), h("p", { class: "mgx-soft" }, pinnedNote("slot").trim()),
      ...list("Made of", made, ""),
      h("p", { class: "mgx-soft" }, trace.moved[i] > 0 ? `This segment moved it by ${size(trace.moved[i])} and kept ${percent(trace.wrote(view.step, slot, 0))}.`
        : since ? `Last changed in segment ${since - 1}, ${many(view.step + 1 - since, "segment")} ago. ` : "Never written so far. ",
      since && since - 1 !== view.step ? h("button", { type: "button", onclick: () => view.go(since - 1) }, `go to segment ${since - 1}`) : null,
      trace.gradient ? ` Gradient of the loss that reaches it: ${size(trace.gradient[i + trace.M])}.` : null),
    ];
  }

  function point() {
    const slot = view.slot !== null && view.slot < trace.M ? view.slot : null;
    const nothing = view.token === null && slot === null;
    element.classList.toggle("mgx-empty", nothing);
    refill(element, () => {
      tokenBlock.replaceChildren(...(view.token !== null ? aboutToken(view.token)
        : nothing ? [h("p", {}, "Point at a token to see which slots hold it, where it read from, and what the model expects next. Point at a slot to see " +
          "the tokens it is made of, and when they came. Click one, or press Enter, to pin it while you step on; Esc lets it go.")] : []));
      slotBlock.replaceChildren(...(slot === null ? [] : aboutSlot(slot)));
      tokenBlock.hidden = !tokenBlock.firstChild;
      slotBlock.hidden = slot === null;
    }, view.root);
  }
  const element = card(view, pane, "What you point at", tokenBlock, slotBlock);
  element.classList.add("mgx-panel");
  element.addEventListener("focusout", (event) => { if (event.relatedTarget) view.leave(event); }); // null: a button was only replaced
  return { element, step: point, point };
}

/** Slots × tokens as coloured cells, which a pointer and the arrow keys read out one by one. `value(slot, column)` is 0 … 1. */
function matrix(view, pane, { title, about, columns, value, say, wordOf }) {
  const { trace } = pane, { M, L } = trace, left = 52, top = 74;
  const canvas = h("canvas", { "aria-hidden": "true" }), heading = h("span"), note = h("p", { class: "mgx-read-out" });
  const region = h("div", { class: "mgx-scroll", tabindex: 0, role: "application", "aria-roledescription": "matrix",
    "aria-label": `${about.label}${pane.of}: arrow keys go from cell to cell` }, canvas);
  const legend = scale(view, columns[0] === 0);
  let cursor = { row: 0, column: columns[0] };
  const cellSize = () => Math.max(view.numbers ? 27 : 0, L <= 20 ? 28 : L <= 40 ? 20 : L <= 80 ? 15 : L <= 256 ? 11 : 6);
  const x = (column, cell) => left + column * cell + (column > 0 ? 6 : 0); // keep, column 0, stands apart

  function draw() {
    const cell = cellSize(), n = trace.length(view.step), width = x(Math.min(L, trace.T) + 1, cell) + 2, height = top + M * cell + 2;
    legend.draw();
    const c = prepare(canvas, width, height), { colours } = view;
    if (canvas.style.width !== `${width}px`) {
      canvas.style.width = `${width}px`;
      element.style.setProperty("--wide", `${width + 26}px`); // so that both matrices stand side by side where there is room
    }
    c.fillStyle = colours.fill;
    if (columns[0] === 0) c.fillRect(x(0, cell), top, cell, M * cell);
    c.fillRect(x(1, cell), top, n * cell, M * cell);
    c.textAlign = "center";
    for (let row = 0; row < M; row++) {
      for (let column = columns[0]; column <= n; column++) {
        const share = value(row, column), level = share === 0 ? 0 : Math.max(1, Math.round(255 * share));
        if (!level) continue;
        const scale = column === 0 ? colours.kept : colours.shares;
        c.fillStyle = scale.css[level];
        c.fillRect(x(column, cell), top + row * cell, cell - 1, cell - 1);
        if (cell < 27) continue;
        c.fillStyle = scale.on[level];
        c.fillText(brief(share), x(column, cell) + (cell - 1) / 2, top + row * cell + cell / 2);
      }
    }
    c.textAlign = "right";
    for (let row = 0; row < M; row++) {
      if (cell < 11 && row % 2) continue;
      c.fillStyle = row === view.slot ? colours.accent : colours.soft;
      c.fillText(`slot ${row}`, left - 6, top + (row + 0.5) * cell);
    }
    c.textAlign = "left";
    for (let column = columns[0]; column <= n && cell >= 11; column++) { // one above each column, written upwards
      const word = [...wordOf(column)];
      c.fillStyle = column > 0 && view.step * L + column - 1 === view.token ? colours.accent : colours.soft;
      c.save();
      c.translate(x(column, cell) + cell / 2, top - 5);
      c.rotate(-Math.PI / 2);
      c.fillText(word.length > 10 ? word.slice(0, 9).join("") + "…" : word.join(""), 0, 0);
      c.restore();
    }
    c.strokeStyle = colours.accent;
    c.lineWidth = 2;
    if (view.slot !== null && view.slot < M) c.strokeRect(x(columns[0], cell) - 1, top + view.slot * cell - 1, x(n + 1, cell) - x(columns[0], cell) + 1, cell + 1);
    const column = view.token === null ? -1 : view.token - view.step * L + 1;
    if (column >= 1 && column <= n) c.strokeRect(x(column, cell) - 1, top - 1, cell + 1, M * cell + 1);
    cursor.column = Math.min(cursor.column, n);
    if (region.matches(":focus")) {
      c.strokeStyle = colours.ink;
      c.strokeRect(x(cursor.column, cell), top + cursor.row * cell, cell - 1, cell - 1);
    }
  }

  function find(event) {
    const box = canvas.getBoundingClientRect(), cell = cellSize(), px = event.clientX - box.left - left;
    const column = px < cell ? (px < 0 ? -1 : 0) : 1 + Math.floor((px - cell - 6) / cell), row = Math.floor((event.clientY - box.top - top) / cell);
    return column >= columns[0] && column <= trace.length(view.step) && row >= 0 && row < M ? { row, column } : null;
  }
  const target = ({ row, column }) => ({ slot: row, token: column > 0 ? view.step * L + column - 1 : null });
  function readOut(at, aloud) {
    note.replaceChildren(...(at ? nodes(say(at.row, at.column, value(at.row, at.column))) : ["Point at a cell, or use the arrow keys, to read it."]));
    if (at && aloud) view.say(flat(say(at.row, at.column, value(at.row, at.column))));
  }
  function move(at) {
    cursor = at;
    const cell = cellSize(), middle = x(at.column, cell) + cell / 2;
    if (middle < region.scrollLeft + left || middle > region.scrollLeft + region.clientWidth - cell) region.scrollLeft = middle - region.clientWidth / 2;
    view.hover(target(at));
    readOut(at, true);
  }
  canvas.addEventListener("mousemove", (event) => { const at = find(event); view.hover(at ? target(at) : {}); readOut(at); });
  canvas.addEventListener("mouseleave", () => { view.hover({}); readOut(null); });
  canvas.addEventListener("click", (event) => {
    const at = find(event);
    if (!at) return;
    cursor = at;
    pin(at);
  });
  function pin(at) {
    const { slot, token } = target(at);
    view.pin("slot", slot, true);
    if (token !== null) view.pin("token", token, true);
  }
  region.addEventListener("focus", () => { if (region.matches(":focus-visible")) move(cursor); });
  region.addEventListener("blur", (event) => { view.leave(event); readOut(null); });
  region.addEventListener("keydown", (event) => {
    const { row, column } = cursor, n = trace.length(view.step), { ctrlKey, metaKey, altKey } = event;
    const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, columns[0]], End: [row, n] };
    if (ctrlKey || metaKey || altKey) return;
    if (event.key in moves) {
      const [r, k] = moves[event.key];
      move({ row: Math.max(0, Math.min(M - 1, r)), column: Math.max(columns[0], Math.min(n, k)) });
    } else if (event.key === "Enter" || event.key === " ") pin(cursor);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  readOut(null);
  const element = card(view, pane, heading, h("p", { class: "mgx-soft" }, about.text), legend.element, region, note);
  return { element, draw, step() {
    setText(heading, title());
    if (region.matches(":focus-visible")) readOut(cursor);
  } };
}

function writeMatrix(view, pane) {
  const { trace } = pane, word = (column) => column === 0 ? "keep" : named(trace.text(view.step * trace.L + column - 1));
  return matrix(view, pane, {
    title: () => `What segment ${view.step} wrote where`,
    about: { label: "What was written", text: "A row says what a slot became: how much it kept of itself, and how much it took from each token. An empty cell is exactly 0. Numbers: percent." },
    columns: [0], wordOf: word,
    value: (slot, column) => trace.wrote(view.step, slot, column),
    say: (slot, column, share) => column === 0 ? [`slot ${slot} keeps ${percent(share)} of itself`]
      : [`slot ${slot} takes ${percent(share)} from “`, { word: word(column) }, "”"],
  });
}

function readMatrix(view, pane) {
  const { trace } = pane, word = (column) => named(trace.text(view.step * trace.L + column - 1));
  return matrix(view, pane, {
    title: () => `What was read (${view.readName()})`,
    about: { label: "What was read", text: "A column says from which slots its token read, before this segment wrote. Numbers: percent; a column sums to 100." },
    columns: [1], wordOf: word,
    value: (slot, column) => trace.readShare(view.step * trace.L + column - 1, slot, view.layer, view.head),
    say: (slot, column, share) => ["“", { word: word(column) }, `” reads ${percent(share)} from slot ${slot}`],
  });
}

/** The same facts as tables, filled only while they are open. */
function tables(view, pane) {
  const { trace } = pane, body = h("div", { class: "mgx-scroll", tabindex: 0, role: "region", "aria-label": `Tables${pane.of}` });
  const element = h("details", { class: "mgx-card", ontoggle: fill }, h("summary", {}, `The same facts as tables${pane.of}`), body);
  const row = (tag, cells) => h("tr", {}, cells.map((cell, i) => h(i && tag === "td" ? "td" : "th",
    { scope: tag === "th" ? "col" : i ? undefined : "row", class: i && typeof cell === "string" ? "mgx-number" : undefined }, cell)));
  const table = (caption, head, rows) => h("table", {}, h("caption", {}, caption), h("thead", {}, row("th", head)), h("tbody", {}, rows.map((cells) => row("td", cells))));
  const shares = (found) => found.map(({ slot, share }) => `slot ${slot}: ${percent(share)}`).join(", ") || "none";
  const each = (share) => Array.from({ length: trace.M }, (_, slot) => ({ slot, share: share(slot) })).filter((one) => one.share > 0).sort((a, b) => b.share - a.share);

  function fill() {
    if (!element.open) return;
    const start = view.step * trace.L, i = view.step * trace.M;
    const ofSlots = Array.from({ length: trace.M }, (_, slot) => [`slot ${slot}`, nodes(trace.sentence(view.step, slot)), percent(trace.initialShare(view.step, slot)),
      percent(trace.restShare(view.step, slot)), percent(trace.wrote(view.step, slot, 0)), size(trace.moved[i + slot]),
      ...(trace.gradient ? [size(trace.gradient[i + trace.M + slot])] : [])]);
    const ofTokens = Array.from({ length: trace.length(view.step) }, (_, t) => [[bdi(visible(trace.text(start + t)))], [shares(trace.holders(view.step, start + t))],
      [shares(each((slot) => trace.wrote(view.step, slot, t + 1)).slice(0, 3))], [shares(each((slot) => trace.readShare(start + t, slot, view.layer, view.head)).slice(0, 3))],
      [bdi(visible(trace.words[trace.next[(start + t) * trace.N]])), `, ${percent(trace.nextShares[(start + t) * trace.N] / 65535)}`], trace.entropy[start + t].toFixed(2)]);
    body.replaceChildren(
      table(`Slots after segment ${view.step}`, ["slot", "made of", "initial value", "other tokens", "kept in this segment", "moved", ...(trace.gradient ? ["gradient"] : [])], ofSlots),
      table(`Tokens of segment ${view.step}`, ["token", "held now by", "written to", `read from (${view.readName()})`, "expected next", "entropy, nats"], ofTokens));
  }
  return { element, step: fill };
}

/** First, back, play, next, last; a slider; a number; speed, layer and head. */
function toolbar(view) {
  const last = view.traces[0].S - 1, button = (name, label, action) => h("button", { type: "button", "aria-label": label, title: label, onclick: action }, icon(name));
  const first = button("first", "First segment (f)", () => view.go(0)), back = button("back", "One segment back (,)", () => view.go(view.step - 1));
  const next = button("next", "Next segment (.)", () => view.go(view.step + 1)), end = button("last", "Last segment (l)", () => view.go(last));
  const play = button("play", "Play (p)", () => view.play(!view.playing));
  play.classList.add("mgx-play");
  const slider = h("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "Segment shown", oninput: () => view.go(Number(slider.value)) });
  const number = h("input", { type: "number", min: 0, max: last, step: 1, onchange: () => {
    view.go(Math.round(Number(number.value)) || 0);
    number.value = view.step; // also where that was no segment, or the one that is shown already
  } });
  const select = (label, options, chosen, onchange) => h("select", { "aria-label": label, onchange }, options.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
  const speed = select("play, segments a second", [[0.5, "1 in 2 s"], [1, "1 a second"], [2, "2 a second"], [4, "4 a second"], [8, "8 a second"]], 2, () => { view.speed = Number(speed.value); view.play(view.playing); });
  const chosen = (element) => element.value === "" ? null : Number(element.value);
  const layer = select("read: layer", [["", "mean"], ...view.traces[0].layers.map((l) => [l, l])], "", () => view.set("layer", chosen(layer)));
  const head = select("head", [["", "mean"], ...Array.from({ length: view.traces[0].H }, (_, i) => [i, i])], "", () => view.set("head", chosen(head)));
  const numbers = h("input", { type: "checkbox", onchange: () => { view.numbers = numbers.checked; view.repaint(); } });
  const element = h("div", { class: "mgx-bar-top", role: "group", "aria-label": "Steps" }, h("div", { class: "mgx-group" }, first, back, play, next, end), slider,
    h("label", {}, "segment", number, h("span", {}, `of 0–${last}`)), h("label", {}, "play", speed),
    h("label", {}, "read: layer", layer), h("label", {}, "head", head), h("label", {}, numbers, "numbers in cells"));

  function step() {
    // A disabled button drops the keyboard's focus, so that one only says that there is nothing further.
    for (const [control, off] of [[first, view.step === 0], [back, view.step === 0], [next, view.step === last], [end, view.step === last]]) control.setAttribute("aria-disabled", String(off));
    slider.value = view.step;
    slider.setAttribute("aria-valuetext", `segment ${view.step} of 0 to ${last}`);
    number.value = view.step;
    layer.value = view.layer ?? "";
    head.value = view.head ?? "";
  }
  function playing() {
    play.replaceChildren(icon(view.playing ? "pause" : "play"));
    const label = view.playing ? "Pause (p)" : "Play (p)";
    play.setAttribute("aria-label", label);
    play.title = label;
  }
  return { element, step, playing };
}

// ---- all together ----

const NAMES = ["step", "layer", "head", "token", "slot"];

/** Shows a model in a new element inside `parent`. level: of its first heading. Returns what takes it all down again. */
async function mount(model, parent, level) {
  const { title, names, traces: packed } = model.get("payload"), traces = await Promise.all(packed.map(unpack));
  // JupyterLab would take keys such as "." and "l" for its own shortcuts.
  const root = h("div", { class: "mgx", role: "region", "aria-label": title, tabindex: -1, "data-lm-suppress-shortcuts": "true" });
  const cleanup = [() => root.remove()];
  parent.append(root);
  const live = h("p", { class: "mgx-hidden", role: "status", "aria-live": "polite" });
  let hovered = {}, timer = null;
  const parts = [];
  const view = {
    root, level, traces, numbers: false, speed: 2, playing: false, colours: null, pinned: {}, step: model.get("step"),
    say: (sentence) => setText(live, sentence),
    set(name, value) { model.set(name, value); model.save_changes(); },
    go(step) { view.set("step", Math.max(0, Math.min(traces[0].S - 1, step))); },
    /** Pins a token or slot, or lets it go if it is pinned already (`keep`: not then). */
    pin(what, value, keep = false) { view.set(what, view.pinned[what] === value && !keep ? null : value); },
    hover(target) {
      const same = (hovered.token ?? null) === (target.token ?? null) && (hovered.slot ?? null) === (target.slot ?? null);
      hovered = target;
      if (!same) update(false);
    },
    /** Lets pointer and keyboard focus inside an element point at what `find` says. */
    pointing(element, find) {
      for (const moved of ["mouseover", "mousemove", "focusin"]) element.addEventListener(moved, (event) => view.hover(find(event)));
      element.addEventListener("mouseleave", () => view.hover({}));
      element.addEventListener("focusout", (event) => view.leave(event));
    },
    /** Keyboard focus goes elsewhere. Into the panel it takes along what is pointed at, or the panel's buttons would vanish under it. */
    leave(event) { if (!event.relatedTarget?.closest(".mgx-panel")) view.hover({}); },
    play(on) {
      clearInterval(timer);
      const before = view.playing;
      view.playing = on && view.step < traces[0].S - 1;
      if (before && !view.playing) announce();
      if (view.playing) timer = setInterval(() => { view.go(view.step + 1); if (view.step === traces[0].S - 1) view.play(false); }, 1000 / view.speed);
      tools.playing();
    },
    readName: () => `${view.layer === null ? "mean of layers" : `layer ${view.layer}`}, ${view.head === null ? "mean of heads" : `head ${view.head}`}`,
    observeSize(element, f) {
      const observer = new ResizeObserver(f);
      observer.observe(element);
      cleanup.push(() => observer.disconnect());
    },
    repaint() { view.colours = palette(root); parts.forEach((part) => part.draw?.()); },
  };

  /** Reads the model, then lets every part show it. whole: something else than what is pointed at may be another. */
  function update(whole) {
    const step = model.get("step");
    if (step !== view.step && Math.floor(hovered.token / traces[0].L) === view.step) { // pointer and focus stay where they are: at another token now
      hovered.token += (step - view.step) * traces[0].L;
      if (hovered.token >= traces[0].T) hovered = { ...hovered, token: null };
    }
    NAMES.forEach((name) => { (name in view.pinned || name === "token" || name === "slot" ? view.pinned : view)[name] = model.get(name); });
    view.token = hovered.token ?? view.pinned.token;
    view.slot = hovered.slot ?? view.pinned.slot;
    parts.forEach((part) => part.draw?.()); // first: text on a canvas makes the browser work out every style that has changed so far
    parts.forEach((part) => (whole ? part.step?.() : part.point?.()));
  }

  const wide = () => { // by the widget's own width, which a notebook or a page decides; container queries would slow every step down
    root.classList.toggle("mgx-wide", root.clientWidth >= 960);
    root.classList.toggle("mgx-narrow", root.clientWidth <= 560);
  };
  wide();
  view.observeSize(root, wide);
  const tools = toolbar(view);
  view.observeSize(tools.element, () => root.style.setProperty("--top", `${tools.element.offsetHeight}px`));
  const panes = traces.map((trace, i) => {
    const name = traces.length > 1 ? names[i] : "", pane = { trace, name, of: name && `, ${isolated(name)}` };
    const [all, words, boxes, facts, wrote, read, table] = [overview, text, slots, panel, writeMatrix, readMatrix, tables].map((make) => make(view, pane));
    parts.push(all, words, boxes, facts, wrote, read, table);
    return h("div", { class: "mgx-pane" }, name ? h("p", { class: "mgx-title" }, bdi(name)) : null, all.element, h("div", { class: "mgx-main" }, words.element, boxes.element),
      h("div", { class: "mgx-side" }, facts.element), h("div", { class: "mgx-matrices" }, wrote.element, read.element), table.element);
  });
  parts.push(tools);
  const { T, S, L, M } = traces[0];
  const help = h("p", { class: "mgx-help mgx-soft" }, "Keys: ", [[".", "next segment"], [",", "back"], ["p", "play or pause"], ["f", "first"], ["l", "last"], ["Tab", "to the next part"],
    ["arrows", "inside a part"], ["Enter", "pin"], ["Esc", "let go"]].flatMap(([key, does], i) => [i ? " · " : "", h("kbd", {}, key), ` ${does}`]));
  root.replaceChildren(h("style", {}, CSS), h(`h${level}`, { class: "mgx-title" }, bdi(title)),
    h("p", { class: "mgx-soft" }, `${many(T, "token")} in ${many(S, "segment")} of ${L}, ${traces.map((trace) => many(trace.M, "slot")).join(" and ")}. Everything is shown as it is after the segment at hand.`),
    tools.element, h("div", { class: "mgx-panes", style: `--panes: ${traces.length}` }, panes), help, live);
  root.classList.toggle("mgx-one", traces.length === 1);

  function keys(event) {
    const typing = event.target.closest?.("input[type=number], select");
    if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
    const does = { ".": () => view.go(view.step + 1), ",": () => view.go(view.step - 1), f: () => view.go(0), l: () => view.go(S - 1), p: () => view.play(!view.playing),
      Escape: () => { hovered = {}; view.set("token", null); view.set("slot", null); update(false); } }[event.key];
    if (!does) return;
    does();
    event.preventDefault();
    event.stopPropagation();
  }
  root.addEventListener("keydown", keys);
  cleanup.push(() => clearInterval(timer), followTheme(root, view.repaint));
  view.colours = palette(root);
  const announce = () => view.say(traces.map((trace, i) => (panes.length > 1 ? `${names[i]}: ` : "") + flat(trace.event(view.step))).join(" "));
  const changed = { step: () => { update(true); if (!view.playing) announce(); }, // playing, it would be said faster than it can be heard
    layer: () => update(true), head: () => update(true), token: () => update(false), slot: () => update(false) };
  for (const [name, f] of Object.entries(changed)) {
    model.on(`change:${name}`, f);
    cleanup.push(() => model.off(`change:${name}`, f));
  }
  update(true);
  return () => cleanup.forEach((f) => f());
}

/** Light or dark as JupyterLab or the site around says, else as the reader's system does. Calls f when that changes. */
function followTheme(root, f) {
  const set = () => {
    const { body, documentElement: page } = document, lab = body.dataset.jpThemeLight;
    const theme = lab === "true" ? "light" : lab === "false" ? "dark" : [page.dataset.theme, body.dataset.theme].find((name) => name === "light" || name === "dark");
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    f();
  };
  const observer = new MutationObserver(set), system = window.matchMedia("(prefers-color-scheme: dark)");
  for (const element of [document.body, document.documentElement]) observer.observe(element, { attributeFilter: ["data-jp-theme-light", "data-theme"] });
  system.addEventListener("change", set);
  set();
  return () => { observer.disconnect(); system.removeEventListener("change", set); };
}

/** Called by Jupyter, for every place in which the widget is shown. */
async function render({ model, el }) {
  let stop = await mount(model, el, 2);
  const again = async () => { stop(); stop = await mount(model, el, 2); };
  model.on("change:payload", again);
  return () => { stop(); model.off("change:payload", again); };
}

/** Shows, inside an element of any page, what MemoryExplorer keeps for it in a notebook's output: {payload, step, layer, head, token, slot}.
 * level: of its first heading. Returns what takes it down. */
export function show(state, parent, level = 2) {
  const values = { ...state }, listeners = {};
  const model = {
    get: (name) => values[name],
    set(name, value) { if (values[name] !== value) { values[name] = value; (listeners[name] ?? []).forEach((f) => f()); } },
    save_changes() {},
    on: (event, f) => (listeners[event.slice(7)] ??= []).push(f),
    off() {},
  };
  return mount(model, parent, level);
}

/** Shows the state that stands in the page; where that fails, as in a browser that cannot inflate, what it has for one without scripts. */
async function openPage() {
  const main = document.querySelector("main");
  main.classList.add("mgx-page");
  document.body.style.margin = "0";
  try {
    await show(JSON.parse(document.querySelector("script[type='application/json']").textContent), main, 1);
    main.querySelector(".mgx").focus(); // keys work at once, until the focus goes elsewhere
  } catch {
    const still = new DOMParser().parseFromString(document.querySelector("noscript").textContent, "text/html").body;
    main.replaceChildren("This browser cannot show the explorer live. This is how it stood:", ...still.children);
  }
}

export default { render };
