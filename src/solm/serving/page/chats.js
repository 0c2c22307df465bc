// Chats in the browser's storage, each under a key of its own, and the list of them.

import { $, button, element } from "./elements.js";

const KEY = "solm-chat-";
const MOST = 100;

function stored() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(KEY)) continue;
    try {
      const chat = JSON.parse(localStorage.getItem(key));
      if (Array.isArray(chat.turns) && chat.id) found.push(chat);
    } catch {
      localStorage.removeItem(key); // not ours, or damaged
    }
  }
  return found.sort((one, other) => other.changed - one.changed);
}

export function newId() {
  return `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`;
}

export function readChat(id) {
  return stored().find((chat) => chat.id === id) ?? null;
}

// Keep a chat. Where there is no room the oldest others go, and where there still is none the chat is not kept.
export function keepChat(id, turns) {
  const text = JSON.stringify({ id, changed: Date.now(), title: turns[0].text.slice(0, 80), turns });
  const others = stored().filter((chat) => chat.id !== id);
  for (const old of others.splice(MOST - 1)) deleteChat(old.id);
  for (;;) {
    try {
      localStorage.setItem(KEY + id, text);
      return;
    } catch {
      const oldest = others.pop();
      if (!oldest) {
        deleteChat(id);
        return;
      }
      deleteChat(oldest.id);
    }
  }
}

export function deleteChat(id) {
  localStorage.removeItem(KEY + id);
}

// Fill the dialog. open(chat) and deleted(id) are called as the user chooses; the chat `current` is marked.
export function listChats(current, open, deleted) {
  const list = $("chat-list"), found = stored();
  list.replaceChildren();
  $("forget").hidden = !found.length;
  if (!found.length) element("li", list, "hint", "No chats yet.");
  for (const chat of found) {
    const line = element("li", list), opener = button(line, chat.title || "(empty)", "open", () => open(chat));
    if (chat.id === current) opener.setAttribute("aria-current", "true");
    element("small", opener, "", new Date(chat.changed).toLocaleString());
    button(line, "Delete", "delete", () => {
      const next = line.nextElementSibling ?? line.previousElementSibling;
      deleteChat(chat.id);
      deleted(chat.id);
      line.remove();
      if (next) next.querySelector(".delete").focus();
      else listChats(current, open, deleted);
      if (!next) $("chats").querySelector(".close").focus();
    }).setAttribute("aria-label", `Delete: ${chat.title}`);
  }
}

export function deleteAllChats() {
  for (const chat of stored()) deleteChat(chat.id);
}
