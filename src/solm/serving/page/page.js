"use strict";

const $ = (id) => document.getElementById(id);
const AXES = ["attention", "mlp", "bits"];
const SETTINGS = ["policy", "net", "attention", "mlp", "bits", "axes", "compare", "temperature", "longest"];
let offers = null; // what the model's dial offers
let model = "";
let turns = []; // {role, text, answers?: [{title, tokens, facts}]}
let running = null; // AbortController of the replies that stream

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
  $("net-value").textContent = value("net").toFixed(2);
  for (const axis of AXES) $(`${axis}-value`).textContent = value(axis).toFixed(axis === "bits" ? 1 : 2);
  $("per-axis").hidden = !value("axes");
  $("net").disabled = value("axes") || value("policy") === "dense";
  for (const axis of AXES) $(axis).disabled = value("policy") === "dense";
  const kept = Object.fromEntries(SETTINGS.map((id) => [id, value(id)]));
  localStorage.setItem("solm-settings", JSON.stringify(kept));
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

function colour(shares) {
  const net = (shares.attention + shares.mlp + shares.bits) / 3;
  const share = Math.min(1, Math.max(0, (net - offers.lowest_net) / (1 - offers.lowest_net)));
  return `hsl(${150 - 145 * share} 70% 50% / 0.28)`;
}

function drawToken(token, parent) {
  const made = element("span", parent, "", token.text);
  made.style.backgroundColor = colour(token.realised);
  made.title = `${token.action}, reads ${(100 * token.cost).toFixed(0)} % of the dense step's bytes`;
}

function histogram(tokens, parent) {
  const counted = tokens.filter((token) => token.controllable);
  parent.replaceChildren();
  if (!counted.length) return;
  AXES.forEach((axis, place) => {
    const levels = offers.axes[axis];
    if (levels.length < 2) return;
    const group = element("div", parent);
    element("b", group, "", axis);
    const seen = counted.map((token) => Number(token.action.split("-")[place].slice(1)));
    for (const level of levels) {
      const share = seen.filter((one) => one === (axis === "bits" ? level : Math.round(level * 100))).length / seen.length;
      const column = element("span", group);
      element("i", column).style.height = `${Math.round(26 * share)}px`;
      column.append(axis === "bits" ? String(level) : level.toFixed(1).replace("0.", "."));
      column.title = `${axis} ${level}: ${(100 * share).toFixed(0)} % of tokens`;
    }
  });
}

function facts(tokens, seconds) {
  const counted = tokens.filter((token) => token.controllable);
  const mean = (pick) => counted.reduce((sum, token) => sum + pick(token), 0) / counted.length;
  const parts = [`${tokens.length} tokens`];
  if (seconds > 0) parts.push(`${(tokens.length / seconds).toFixed(1)} tokens/s`);
  if (counted.length) {
    const shares = AXES.map((axis) => mean((token) => token.realised[axis]));
    parts.push(`net ${(shares.reduce((a, b) => a + b) / 3).toFixed(2)}`);
    parts.push(`attention ${shares[0].toFixed(2)}`, `MLP ${shares[1].toFixed(2)}`, `bits ${(16 * shares[2]).toFixed(1)}`);
    parts.push(`bytes ${mean((token) => token.cost).toFixed(2)}`);
  }
  return parts.join(" · ");
}

function drawAnswer(parent, answer) {
  const box = element("div", parent, "answer");
  element("h2", box, "", answer.title);
  const said = element("div", box, "said");
  answer.tokens.forEach((token) => drawToken(token, said));
  const line = element("p", box, "facts", answer.facts);
  const bars = element("div", box, "bars");
  histogram(answer.tokens, bars);
  return { said, line, bars };
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

async function reply(efficiency, answer, shown, messages) {
  const body = {
    model, messages, stream: true, temperature: value("temperature"), max_tokens: value("longest"),
    efficiency: { ...efficiency, trace: true },
  };
  let begun = 0;
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
          begun ||= performance.now();
          answer.tokens.push(token);
          drawToken(token, shown.said);
        }
        // The trace holds every token; the text stops short of a stop token.
        answer.text += choice.delta.content ?? "";
      }
      answer.facts = facts(answer.tokens, (performance.now() - begun) / 1000);
      shown.line.textContent = answer.facts;
      histogram(answer.tokens, shown.bars);
      $("talk").scrollTop = $("talk").scrollHeight;
    }
  } catch (error) {
    if (error.name === "AbortError") answer.facts += " · stopped";
    else {
      answer.facts = error.message;
      shown.line.classList.add("failed");
    }
    shown.line.textContent = answer.facts;
  }
}

function dial() {
  const policy = value("policy");
  if (policy === "dense") return { policy };
  if (!value("axes")) return { policy, budget: value("net") };
  return { policy, budget: Object.fromEntries(AXES.map((axis) => [axis, value(axis)])) };
}

async function ask(text) {
  const turn = { role: "user", text };
  turns.push(turn);
  draw(turn);
  const messages = turns.map((one) => ({ role: one.role, content: one.text }));
  const asked = dial();
  const budget = asked.budget === undefined ? "" : typeof asked.budget === "number" ? asked.budget.toFixed(2) :
    AXES.map((axis) => `${axis} ${asked.budget[axis]}`).join(", ");
  const orders = [[asked, `${asked.policy} ${budget}`]];
  if (value("compare") && asked.policy !== "dense") orders.push([{ policy: "dense" }, "dense"]);
  const answers = orders.map(([, title]) => ({ title, tokens: [], text: "", facts: "" }));
  const answered = { role: "assistant", text: "", answers: [] };
  const box = draw(answered).querySelector(".answers");
  const shown = answers.map((answer) => drawAnswer(box, answer));
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  await Promise.all(orders.map(([efficiency], index) => reply(efficiency, answers[index], shown[index], messages)));
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  turns.push({ ...answered, text: answers[0].text, answers });
  sessionStorage.setItem("solm-turns", JSON.stringify(turns));
  $("prompt").focus();
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
  // The lowest budget that the slider's steps reach.
  $("net").min = Math.ceil(offers.lowest_net * 100) / 100;
  $("net").value = 0.6;
  for (const axis of AXES) {
    $(axis).min = offers.axes[axis][0];
    $(axis).value = offers.axes[axis].at(-1);
  }
  restore();
  showSettings();
}

$("ask").addEventListener("submit", send);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  sessionStorage.removeItem("solm-turns");
  $("talk").replaceChildren();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
for (const id of SETTINGS) $(id).addEventListener("input", showSettings);
connect().catch((error) => { $("model").textContent = `not connected: ${error.message}`; });
