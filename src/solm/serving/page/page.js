// The page: settings, the conversation, and the replies as they stream.

import { drawAnswer, facts } from "./answers.js";
import { showCard } from "./card.js";
import { deleteAllChats, keepChat, listChats, newId, readChat } from "./chats.js";
import { asked, dial, lowest, lowestBytes, second, SETTINGS, title, unit, value } from "./dial.js";
import { $, AXES, element } from "./elements.js";
import { events } from "./stream.js";

let known = null; // the model of /v1/models
let offers = null; // what its dial offers
let turns = []; // {role, text, answers?: [{title, asked, unit, lowest, tokens, text, reasoning, facts, step, realised}]}, step: milliseconds per token
let chat = newId(); // of these turns in the browser's storage
let running = null; // AbortController of the replies that stream
let context = 0; // tokens of the conversation with the message being written
const narrow = matchMedia("(max-width: 46rem)");

function showSettings() {
  const least = String(Math.ceil(lowest(offers, context) * 100) / 100);
  for (const id of ["bytes", "other-bytes"]) {
    $(id).min = least;
    $(`${id}-value`).textContent = value(id).toFixed(2);
  }
  $("least").textContent = `${context ? `After these ${context.toLocaleString("en")} tokens` : "In a short context"} steps ` +
    `${unit(offers) === "time" ? "take" : "read"} at least ${Number(least).toFixed(2)}. Attention reads all of the first ${offers.always_read} tokens.` +
    (offers.budgets ? ` Below ${offers.opening.toFixed(2)} quality begins to fall.` : " What budgets lose is not measured here.");
  $("dial-value").textContent = [title(dial(), offers), value("compare") ? `beside ${title(second(offers), offers)}` : ""].filter(Boolean).join(", ");
  for (const axis of AXES) $(`${axis}-value`).textContent = value(axis).toFixed(axis === "bits" ? 1 : 2);
  $("per-axis").hidden = !value("axes");
  $("second").hidden = !value("compare");
  $("other-slider").hidden = value("other") === "dense";
  $("bytes").disabled = value("axes") || value("policy") === "dense";
  for (const axis of AXES) $(axis).disabled = value("policy") === "dense";
  const kept = Object.fromEntries(SETTINGS.map((id) => [id, value(id)]));
  localStorage.setItem("solm-settings", JSON.stringify(kept));
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
    else if ($(id).type !== "select-one" || [...$(id).options].some((one) => one.value === kept[id])) $(id).value = kept[id];
  }
  show(readChat(sessionStorage.getItem("solm-chat")));
}

// Put another chat on the page; null: a new one.
function show(kept) {
  running?.abort();
  turns = kept?.turns ?? [];
  chat = kept?.id ?? newId();
  sessionStorage.setItem("solm-chat", chat);
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  turns.forEach(draw);
  follow();
}

function draw(turn) {
  const box = element("div", $("talk"), `turn ${turn.role}`);
  if (turn.role === "user") element("div", box, "said raw", turn.text);
  else {
    const answers = element("div", box, "answers");
    turn.answers.forEach((answer) => drawAnswer(answers, answer, offers));
  }
  return box;
}

// Stay at the end of the talk, but not where the reader has scrolled up.
let following = true;
function follow() {
  if (following) $("talk").scrollTop = $("talk").scrollHeight;
}

async function reply(efficiency, answer, shown, messages) {
  const body = {
    model: known.id, messages, stream: true, temperature: value("temperature"), max_tokens: value("longest"),
    stream_options: { include_usage: true }, efficiency: { ...efficiency, trace: true },
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
      answer.realised = event.usage?.compute?.realised ?? null;
      for (const choice of event.choices) {
        answer.tokens.push(...(choice.efficiency?.tokens ?? []));
        // The trace holds every token; the text stops short of a stop token.
        answer.reasoning += choice.delta.reasoning_content ?? "";
        answer.text += choice.delta.content ?? "";
      }
      if (!begun && answer.tokens.length) [begun, already] = [performance.now(), answer.tokens.length];
      else if (answer.tokens.length > counted) answer.step = (performance.now() - begun) / (answer.tokens.length - already);
      counted = answer.tokens.length;
      answer.facts = facts(answer, offers.axes);
      shown.update();
      follow();
    }
  } catch (error) {
    answer.failed = error.name !== "AbortError";
    answer.facts = answer.failed ? [error.message] : [...answer.facts, "stopped"];
  }
  shown.update(true);
  follow();
}

// How many times as fast as the second answer.
function compareSpeeds(answers, shown) {
  const other = answers[1]?.step;
  if (!other || !answers[0].step) return;
  const name = answers[1].asked === 1 ? "dense speed" : "the second's speed";
  answers.forEach((answer, index) => {
    answer.facts.splice(3, 0, `${(other / answer.step).toFixed(2)}× ${name}`);
    shown[index].update(true);
  });
}

async function ask(text) {
  const talk = turns, turn = { role: "user", text };
  turns.push(turn);
  draw(turn);
  const messages = turns.map((one) => ({ role: one.role, content: one.text }));
  const orders = [dial()];
  if (value("compare") && title(dial(), offers) !== title(second(offers), offers)) orders.push(second(offers));
  const answers = orders.map((order) => ({
    title: title(order, offers), asked: asked(order), unit: unit(offers), lowest: lowestBytes(offers, context), tokens: [], text: "", reasoning: "", facts: [], step: 0, realised: null,
  }));
  const answered = { role: "assistant", text: "", answers: [] };
  const box = draw(answered).querySelector(".answers");
  const shown = answers.map((answer) => drawAnswer(box, answer, offers));
  running = new AbortController();
  following = true;
  // A phone's dial and keyboard would cover the answer.
  if (narrow.matches) {
    $("dial").open = false;
    $("prompt").blur();
  }
  follow();
  busy(true);
  const replies = orders.map((efficiency, index) => () => reply(efficiency, answers[index], shown[index], messages));
  // One after the other, unless asked otherwise: at once they share passes, and neither shows its own speed.
  if (value("together")) await Promise.all(replies.map((start) => start()));
  else {
    for (const start of replies) await start();
    if (!running.signal.aborted) compareSpeeds(answers, shown);
  }
  running = null;
  busy(false);
  talk.push({ ...answered, text: answers[0].text, answers });
  if (talk === turns) keepChat(chat, turns);
  measureSoon();
  if (!narrow.matches) $("prompt").focus();
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  $("talk").setAttribute("aria-busy", String(yes));
}

function send(event) {
  event?.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running || !offers) return;
  $("prompt").value = "";
  ask(text);
}

function another(kept) {
  show(kept);
  measureSoon();
  $("prompt").focus();
}

async function connect() {
  const response = await fetch("v1/models");
  if (!response.ok) throw new Error((await response.json()).error.message);
  [known] = (await response.json()).data;
  offers = known.efficiency;
  $("model").textContent = known.id;
  document.querySelectorAll(".unit").forEach((one) => { one.textContent = unit(offers); });
  for (const name of offers.policies) $("policy").append(new Option(name, name));
  $("policy").value = offers.default_policy;
  for (const id of ["bytes", "other-bytes"]) $(id).value = offers.opening;
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
$("clear").addEventListener("click", () => another(null));
$("saved").addEventListener("click", () => {
  const forgotten = (id) => { if (id === chat) show(null); };
  listChats(chat, (kept) => { $("chats").close(); another(kept); }, forgotten);
  $("chats").showModal();
});
$("forget").addEventListener("click", () => {
  if (!confirm("Delete all chats from this browser?")) return;
  deleteAllChats();
  $("chats").close();
  another(null);
});
$("about").addEventListener("click", () => {
  if (!known) return;
  showCard(known, (budget) => {
    $("axes").checked = false;
    $("policy").value = offers.default_policy;
    $("bytes").value = budget;
    $("card").close();
    showSettings();
  });
  $("card").showModal();
});
for (const closer of document.querySelectorAll("dialog .close")) closer.addEventListener("click", () => closer.closest("dialog").close());
$("prompt").addEventListener("input", measureSoon);
$("talk").addEventListener("scroll", () => {
  const talk = $("talk");
  following = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") running?.abort();
  if (event.key === "/" && !event.target.matches("input, select, textarea")) {
    event.preventDefault();
    $("prompt").focus();
  }
});
$("dial").open = !narrow.matches;
narrow.addEventListener("change", () => { $("dial").open = !narrow.matches; });
for (const id of SETTINGS) $(id).addEventListener("input", showSettings);
for (const id of ["markdown", "colours"]) {
  $(id).addEventListener("input", () => {
    if (running) return; // holds from the next reply on
    document.querySelectorAll(".turn").forEach((turn) => turn.remove());
    turns.forEach(draw);
  });
}
connect().catch((error) => { $("model").textContent = `not connected: ${error.message}`; });
