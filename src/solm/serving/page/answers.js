// One answer: its text token by token, coloured by cost or by who guessed it, and below it speed and compute.

import { $, AXES, copyButton, element } from "./elements.js";
import { renderMarkdown } from "./markdown.js";

const NAMES = { attention: "KV pages chosen", mlp: "MLP channels chosen", bits: "Activation bits chosen" };
const PAUSE = 80; // milliseconds between two layouts of a reply that grows

// Hues of the sources that guessed a token.
const SOURCES = { lookup: 215, recalled: 190, prediction: 245, grammar: 275, draft: 310 };

// From the least that steps can read in this context to all that dense ones read.
function colour({ cost, guessed }, lowest) {
  if (guessed) return `hsl(${SOURCES[guessed]} 80% 55% / 0.3)`;
  const share = Math.min(1, Math.max(0, (cost - lowest) / (1 - lowest)));
  return `hsl(${150 - 145 * share} 70% 50% / 0.28)`;
}

// Text with its tokens as spans. update() draws what has come since.
class Text {
  constructor(parent, answer) {
    this.answer = answer;
    this.source = "";
    this.ends = []; // of the tokens in the source
    this.markdown = $("markdown").checked;
    this.colours = $("colours").checked;
    this.box = element("div", parent, this.markdown ? "said" : "said raw");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "group");
    this.box.setAttribute("aria-label", `${answer.title}; arrow keys step through tokens`);
    this.picked = element("p", parent, "picked");
    this.picked.setAttribute("role", "status");
    this.box.addEventListener("click", (event) => this.pick(event.target.closest("[data-token]")));
    this.box.addEventListener("keydown", (event) => this.step(event));
    this.draw();
  }

  update(now = false) {
    if (now) this.draw();
    else this.waiting ??= setTimeout(() => this.draw(), PAUSE);
  }

  draw() {
    clearTimeout(this.waiting);
    this.waiting = undefined;
    const from = this.ends.length;
    this.tokens = this.answer.tokens.filter((token) => !token.reasoning);
    for (const token of this.tokens.slice(from)) {
      this.source += this.source || !this.answer.reasoning ? token.text : token.text.trimStart();
      this.ends.push(this.source.length);
    }
    if (this.markdown) {
      renderMarkdown(this.box, this.source, (parent, start, end) => this.leaf(parent, start, end));
      for (const block of this.box.querySelectorAll(".code:not(:has(.copy))")) copyButton(block, () => block.querySelector("code").textContent, "code");
    } else this.leaf(this.box, from ? this.ends[from - 1] : 0, this.source.length);
  }

  leaf(parent, start, end) {
    let low = 0, high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > start) high = middle;
      else low = middle + 1;
    }
    for (; start < end; low += 1) {
      if (this.ends[low] === start) continue; // a token without text
      const until = Math.min(end, this.ends[low]), token = this.tokens[low];
      const made = element("span", parent, "", this.source.slice(start, until));
      made.dataset.token = low;
      if (this.colours) made.style.backgroundColor = colour(token, this.answer.lowest);
      made.title = described(token);
      start = until;
    }
  }

  pick(span) {
    this.box.querySelectorAll(".chosen").forEach((one) => one.classList.remove("chosen"));
    this.chosen = span ? Number(span.dataset.token) : undefined;
    if (span) this.box.querySelectorAll(`[data-token="${this.chosen}"]`).forEach((one) => one.classList.add("chosen"));
    this.picked.textContent = span ? `“${span.textContent.trim()}”: ${span.title}` : "";
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target !== this.box) return;
    event.preventDefault();
    const shown = [...this.box.querySelectorAll("[data-token]")], at = shown.findIndex((one) => Number(one.dataset.token) === this.chosen);
    let next = at < 0 ? (by > 0 ? 0 : shown.length - 1) : at + by;
    while (shown[next] && Number(shown[next].dataset.token) === this.chosen) next += by;
    if (shown[next]) {
      this.pick(shown[next]);
      shown[next].scrollIntoView({ block: "nearest" });
    }
  }
}

function described(token) {
  const guessed = token.guessed ? `, guessed by ${token.guessed}` : "";
  return `${token.action}, reads ${(100 * token.cost).toFixed(0)} % of the dense step's bytes${guessed}`;
}

function histogram({ tokens, asked }, levelsOf, parent) {
  parent.replaceChildren();
  if (asked === 1) return;
  AXES.forEach((axis, place) => {
    const levels = levelsOf[axis];
    const counted = tokens.filter((token) => token.controllable[axis]);
    if (levels.length < 2 || !counted.length) return;
    const group = element("div", parent);
    element("b", group, "", NAMES[axis]);
    const few = levels.length < 7, columns = element("div", group, few ? "columns few" : "columns");
    const seen = counted.map((token) => Number(token.action.split("-")[place].slice(1)));
    levels.forEach((level, index) => {
      const share = seen.filter((one) => one === (axis === "bits" ? level : Math.round(level * 100))).length / seen.length;
      const column = element("span", columns);
      element("i", column).style.height = `${Math.round(26 * share)}px`;
      // Every label where there are few, else every third, up to the last.
      element("small", column, "", few || (levels.length - 1 - index) % 3 === 0 ? String(level) : "\u00a0");
      column.title = `${axis} ${level}: ${(100 * share).toFixed(0)} % of tokens`;
    });
  });
}

// Mean of some number of tokens; NaN without tokens.
function mean(tokens, number) {
  return tokens.reduce((sum, token) => sum + number(token), 0) / tokens.length;
}

// Mean of what steps read, as a share of dense bytes. The first token comes from reading the prompt.
function spentBytes(tokens) {
  return mean(tokens.slice(1), (token) => token.cost);
}

// Spent so far, and a mark at what was asked for. What was spent of time is known at the end.
function meter({ tokens, asked, unit, realised }, parent) {
  const spent = unit === "time" ? realised?.time ?? Number.NaN : spentBytes(tokens);
  parent.hidden = Number.isNaN(spent) || asked === 1;
  parent.firstChild.style.width = `${100 * Math.min(1, spent)}%`;
  parent.lastChild.hidden = asked === null;
  parent.lastChild.style.left = `${100 * asked}%`;
  parent.title = `${spent.toFixed(2)} of dense ${unit}${asked === null ? "" : `, ${asked.toFixed(2)} asked for`}`;
}

export function facts({ tokens, step, asked, unit, realised }, levelsOf) {
  const parts = [`${tokens.length} tokens`];
  if (step > 0) parts.push(`${(1000 / step).toFixed(1)} tokens/s`, `${step.toFixed(1)} ms per token`);
  if (tokens.length > 1 && asked !== 1) {
    const spent = (axis) => mean(tokens.filter((token) => token.controllable[axis]), (token) => token.realised[axis]);
    const of = asked === null ? "" : ` of ${asked.toFixed(2)} asked`;
    if (unit === "time" && realised) parts.push(`time ${realised.time.toFixed(2)}${of}`, `dense step ${realised.dense_ms.toFixed(1)} ms`);
    parts.push(`bytes ${spentBytes(tokens).toFixed(2)}${unit === "bytes" ? of : ""}`);
    parts.push(`KV pages ${(spent("attention") || 1).toFixed(2)}`, `MLP ${spent("mlp").toFixed(2)}`);
    if (levelsOf.bits.length > 1) parts.push(`bits ${(16 * spent("bits")).toFixed(1)}`);
    if (realised?.loss) parts.push(`loss about ${realised.loss.toFixed(3)} nats`);
  }
  return parts;
}

// Why a reply to a short prompt spent more than was asked for. Its first token comes from reading the prompt.
function why({ tokens, asked }, offers) {
  const steps = tokens.length - 1, whole = tokens.slice(1).filter((token) => !token.controllable.attention).length;
  if (asked === 1 || offers.axes.attention.length < 2 || !(whole > 0)) return "";
  return `Attention read everything in the first ${whole} of ${steps} steps, as it does in the first ` +
    `${offers.always_read} tokens of a context.`;
}

function showFacts(line, parts) {
  line.replaceChildren();
  for (const part of parts) {
    element("span", line, /^bytes|^time|tokens.s$|× / .test(part) ? "rate" : "", part);
    line.append(" ");
  }
}

// Draw an answer into `parent`; the result's update(now) shows what has changed in it.
export function drawAnswer(parent, answer, offers) {
  const box = element("div", parent, "answer"), head = element("div", box, "head");
  element("h2", head, "", answer.title);
  copyButton(head, () => answer.text || text.source, "this answer");
  const thinking = element("details", box, "thinking");
  element("summary", thinking, "", "Thinking");
  const thought = element("div", thinking, "thought");
  const text = new Text(box, answer);
  const gauge = element("div", box, "meter");
  element("i", gauge);
  element("b", gauge);
  const line = element("p", box, "facts"), reason = element("p", box, "why"), bars = element("div", box, "bars");
  const update = (now = false) => {
    thinking.hidden = !answer.reasoning;
    if (thought.textContent !== (answer.reasoning ?? "")) thought.textContent = answer.reasoning;
    text.update(now);
    meter(answer, gauge);
    line.classList.toggle("failed", Boolean(answer.failed));
    showFacts(line, answer.facts);
    reason.textContent = why(answer, offers);
    histogram(answer, offers.axes, bars);
  };
  update(true);
  return { update };
}
