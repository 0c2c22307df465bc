"use strict";

const $ = (id) => document.getElementById(id);
const AXES = ["attention", "mlp", "bits"];
const NAMES = { attention: "KV pages chosen", mlp: "MLP channels chosen", bits: "Activation bits chosen" };
const SETTINGS = ["policy", "bytes", "attention", "mlp", "bits", "axes", "compare", "temperature", "longest"];
let offers = null; // what the model's dial offers
let model = "";
let turns = []; // {role, text, answers?: [{title, asked, lowest, tokens, facts, step}]}, step: milliseconds per token
let running = null; // AbortController of the replies that stream
let context = 0; // tokens of the conversation with the message being written
const narrow = matchMedia("(max-width: 46rem)");

function element(tag, parent, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

function value(id) {
  const field = $(id);
  return field.type === "checkbox" ? field.checked : field.type === "select-one" ? field.value : Number(field.value);
}

function showSettings() {
  $("bytes").min = Math.ceil(lowestBytes() * 100) / 100;
  $("bytes-value").textContent = value("bytes").toFixed(2);
  $("least").textContent = `${context ? `After these ${context.toLocaleString("en")} tokens` : "In a short context"} steps read at least ${Number($("bytes").min).toFixed(2)}. ` +
    `Attention reads all of the first ${offers.always_read} tokens.`;
  $("dial-value").textContent = [title(dial()), value("compare") ? "beside dense" : ""].filter(Boolean).join(", ");
  for (const axis of AXES) $(`${axis}-value`).textContent = value(axis).toFixed(axis === "bits" ? 1 : 2);
  $("per-axis").hidden = !value("axes");
  $("bytes").disabled = value("axes") || value("policy") === "dense";
  for (const axis of AXES) $(axis).disabled = value("policy") === "dense";
  const kept = Object.fromEntries(SETTINGS.map((id) => [id, value(id)]));
  localStorage.setItem("solm-settings", JSON.stringify(kept));
}

// The least share of the dense step's bytes after `context` tokens. It falls with the context.
function lowestBytes() {
  const shares = Object.entries(offers.lowest_bytes);
  return (shares.findLast(([after]) => Number(after) <= context) ?? shares[0])[1];
}

// Count the tokens of the conversation, on which depends what can be saved.
async function measure() {
  const text = $("prompt").value.trim();
  const messages = [...turns, ...(text ? [{ role: "user", text }] : [])].map((one) => ({ role: one.role, content: one.text }));
  let count = 0;
  if (messages.length) {
    const response = await fetch("tokenize", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ messages }),
    });
    if (response.ok) count = (await response.json()).count;
  }
  context = count;
  showSettings();
}

let measuring = 0;
function measureSoon() {
  clearTimeout(measuring);
  measuring = setTimeout(measure, 300);
}

function restore() {
  const kept = JSON.parse(localStorage.getItem("solm-settings") || "{}");
  for (const id of SETTINGS) {
    if (!(id in kept)) continue;
    if ($(id).type === "checkbox") $(id).checked = kept[id];
    else if ($(id).type !== "select-one" || offers.policies.includes(kept[id])) $(id).value = kept[id];
  }
  turns = JSON.parse(sessionStorage.getItem("solm-turns") || "[]");
  turns.forEach(draw);
}

// From the least that steps can read in this context to all that dense ones read.
function colour(cost, lowest) {
  const share = Math.min(1, Math.max(0, (cost - lowest) / (1 - lowest)));
  return `hsl(${150 - 145 * share} 70% 50% / 0.28)`;
}

function drawToken(token, lowest, parent) {
  const made = element("span", parent, "", token.text);
  made.style.backgroundColor = colour(token.cost, lowest);
  made.title = `${token.action}, reads ${(100 * token.cost).toFixed(0)} % of the dense step's bytes`;
}

function histogram({ tokens, asked }, parent) {
  parent.replaceChildren();
  if (asked === 1) return;
  AXES.forEach((axis, place) => {
    const levels = offers.axes[axis];
    const counted = tokens.filter((token) => token.controllable[axis]);
    if (levels.length < 2 || !counted.length) return;
    const group = element("div", parent);
    element("b", group, "", NAMES[axis]);
    const columns = element("div", group, "columns");
    const seen = counted.map((token) => Number(token.action.split("-")[place].slice(1)));
    levels.forEach((level, index) => {
      const share = seen.filter((one) => one === (axis === "bits" ? level : Math.round(level * 100))).length / seen.length;
      const column = element("span", columns);
      element("i", column).style.height = `${Math.round(26 * share)}px`;
      // Every label where there are few, else every third, up to the last.
      element("small", column, "", levels.length < 7 || (levels.length - 1 - index) % 3 === 0 ? String(level) : "\u00a0");
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

// Spent so far, and a mark at what was asked for.
function meter({ tokens, asked }, parent) {
  const spent = spentBytes(tokens);
  parent.hidden = Number.isNaN(spent) || asked === 1;
  parent.firstChild.style.width = `${100 * Math.min(1, spent)}%`;
  parent.lastChild.hidden = asked === null;
  parent.lastChild.style.left = `${100 * asked}%`;
  parent.title = `${spent.toFixed(2)} of dense bytes${asked === null ? "" : `, ${asked.toFixed(2)} asked for`}`;
}

function facts({ tokens, step, asked }) {
  const parts = [`${tokens.length} tokens`];
  if (step > 0) parts.push(`${(1000 / step).toFixed(1)} tokens/s`, `${step.toFixed(1)} ms per token`);
  if (tokens.length > 1 && asked !== 1) {
    const spent = (axis) => mean(tokens.filter((token) => token.controllable[axis]), (token) => token.realised[axis]);
    parts.push(`bytes ${spentBytes(tokens).toFixed(2)}${asked === null ? "" : ` of ${asked.toFixed(2)} asked`}`);
    parts.push(`KV pages ${(spent("attention") || 1).toFixed(2)}`, `MLP ${spent("mlp").toFixed(2)}`);
    if (offers.axes.bits.length > 1) parts.push(`bits ${(16 * spent("bits")).toFixed(1)}`);
  }
  return parts;
}

// Why a reply to a short prompt spent more than was asked for. Its first token comes from reading the prompt.
function why({ tokens, asked }) {
  const steps = tokens.length - 1, whole = tokens.slice(1).filter((token) => !token.controllable.attention).length;
  if (asked === 1 || offers.axes.attention.length < 2 || !(whole > 0)) return "";
  return `Attention read everything in the first ${whole} of ${steps} steps, as it does in the first ` +
    `${offers.always_read} tokens of a context.`;
}

function showFacts(line, parts) {
  line.replaceChildren();
  for (const part of parts) {
    element("span", line, /^bytes|tokens.s$|dense speed$/.test(part) ? "rate" : "", part);
    line.append(" ");
  }
}

function drawAnswer(parent, answer) {
  const box = element("div", parent, "answer");
  element("h2", box, "", answer.title);
  const said = element("div", box, "said");
  answer.tokens.forEach((token) => drawToken(token, answer.lowest, said));
  const picked = element("p", box, "picked");
  picked.setAttribute("role", "status");
  said.addEventListener("click", (event) => { picked.textContent = event.target.title; });
  const gauge = element("div", box, "meter");
  element("i", gauge);
  element("b", gauge);
  meter(answer, gauge);
  const line = element("p", box, answer.failed ? "facts failed" : "facts");
  showFacts(line, answer.facts);
  const reason = element("p", box, "why", why(answer));
  const bars = element("div", box, "bars");
  histogram(answer, bars);
  return { said, gauge, line, reason, bars };
}

function draw(turn) {
  const box = element("div", $("talk"), `turn ${turn.role}`);
  if (turn.role === "user") element("div", box, "said", turn.text);
  else {
    const answers = element("div", box, "answers");
    turn.answers.forEach((answer) => drawAnswer(answers, answer));
  }
  return box;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value: more } = await reader.read();
    if (done) return;
    kept += more;
    const parts = kept.split("\n\n");
    kept = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// Stay at the end of the talk, but not where the reader has scrolled up.
let following = true;
function follow() {
  if (following) $("talk").scrollTop = $("talk").scrollHeight;
}

async function reply(efficiency, answer, shown, messages) {
  const body = {
    model, messages, stream: true, temperature: value("temperature"), max_tokens: value("longest"),
    efficiency: { ...efficiency, trace: true },
  };
  let begun = 0, counted = 0, already = 0; // tokens that had come when the clock started
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        for (const token of choice.efficiency?.tokens ?? []) {
          answer.tokens.push(token);
          drawToken(token, answer.lowest, shown.said);
        }
        // The trace holds every token; the text stops short of a stop token.
        answer.text += choice.delta.content ?? "";
      }
      if (!begun && answer.tokens.length) [begun, already] = [performance.now(), answer.tokens.length];
      else if (answer.tokens.length > counted) answer.step = (performance.now() - begun) / (answer.tokens.length - already);
      counted = answer.tokens.length;
      answer.facts = facts(answer);
      showFacts(shown.line, answer.facts);
      shown.reason.textContent = why(answer);
      meter(answer, shown.gauge);
      histogram(answer, shown.bars);
      follow();
    }
  } catch (error) {
    answer.failed = error.name !== "AbortError";
    answer.facts = answer.failed ? [error.message] : [...answer.facts, "stopped"];
    shown.line.classList.toggle("failed", answer.failed);
    showFacts(shown.line, answer.facts);
  }
}

function dial() {
  const policy = value("policy");
  if (policy === "dense") return { policy };
  if (!value("axes")) return { policy, budget: value("bytes") };
  return { policy, budget: Object.fromEntries(AXES.map((axis) => [axis, value(axis)])) };
}

function title({ policy, budget }) {
  if (budget === undefined) return policy;
  if (typeof budget === "number") return `${policy}, budget ${budget.toFixed(2)}`;
  const axes = AXES.filter((axis) => offers.axes[axis].length > 1);
  return `${policy}, ${axes.map((axis) => `${axis} ${budget[axis]}`).join(", ")}`;
}

// The share of bytes that was asked for; null where axes were set instead.
function asked({ budget }) {
  return typeof budget === "object" ? null : budget ?? 1;
}

// How many times as fast as the dense answer, which is the last of two.
function compareSpeeds(answers, shown) {
  const dense = answers[1]?.step;
  if (!dense || !answers[0].step) return;
  answers.forEach((answer, index) => {
    answer.facts.splice(3, 0, `${(dense / answer.step).toFixed(2)}× dense speed`);
    showFacts(shown[index].line, answer.facts);
  });
}

async function ask(text) {
  const talk = turns, turn = { role: "user", text };
  turns.push(turn);
  draw(turn);
  const messages = turns.map((one) => ({ role: one.role, content: one.text }));
  const orders = [dial()];
  if (value("compare") && orders[0].policy !== "dense") orders.push({ policy: "dense" });
  const answers = orders.map((order) => ({ title: title(order), asked: asked(order), lowest: lowestBytes(), tokens: [], text: "", facts: [], step: 0 }));
  const answered = { role: "assistant", text: "", answers: [] };
  const box = draw(answered).querySelector(".answers");
  const shown = answers.map((answer) => drawAnswer(box, answer));
  running = new AbortController();
  following = true;
  // A phone's dial and keyboard would cover the answer.
  if (narrow.matches) {
    $("dial").open = false;
    $("prompt").blur();
  }
  follow();
  busy(true);
  // One after the other: side by side they would share passes, and neither would show its own speed.
  for (const [index, efficiency] of orders.entries()) await reply(efficiency, answers[index], shown[index], messages);
  if (!running.signal.aborted) compareSpeeds(answers, shown);
  running = null;
  busy(false);
  talk.push({ ...answered, text: answers[0].text, answers });
  if (talk === turns) keep();
  measureSoon();
  if (!narrow.matches) $("prompt").focus();
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  $("talk").setAttribute("aria-busy", String(yes));
}

function keep() {
  try {
    sessionStorage.setItem("solm-turns", JSON.stringify(turns));
  } catch {
    sessionStorage.removeItem("solm-turns"); // a talk too long for the browser is not kept over a reload
  }
}

function send(event) {
  event?.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running || !offers) return;
  $("prompt").value = "";
  ask(text);
}

async function connect() {
  const response = await fetch("v1/models");
  if (!response.ok) throw new Error((await response.json()).error.message);
  const [known] = (await response.json()).data;
  model = known.id;
  offers = known.efficiency;
  $("model").textContent = model;
  for (const name of offers.policies) $("policy").append(new Option(name, name));
  $("policy").value = offers.default_policy;
  $("bytes").value = 0.85;
  for (const axis of AXES) {
    $(axis).min = offers.axes[axis][0];
    $(axis).value = offers.axes[axis].at(-1);
    $(axis).closest(".slider").hidden = offers.axes[axis].length < 2;
  }
  restore();
  await measure();
}

$("ask").addEventListener("submit", send);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  sessionStorage.removeItem("solm-turns");
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  measureSoon();
  $("prompt").focus();
});
$("prompt").addEventListener("input", measureSoon);
$("talk").addEventListener("scroll", () => {
  const talk = $("talk");
  following = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "/" && !event.target.matches("input, select, textarea")) {
    event.preventDefault();
    $("prompt").focus();
  }
});
$("dial").open = !narrow.matches;
narrow.addEventListener("change", () => { $("dial").open = !narrow.matches; });
for (const id of SETTINGS) $(id).addEventListener("input", showSettings);
connect().catch((error) => { $("model").textContent = `not connected: ${error.message}`; });
