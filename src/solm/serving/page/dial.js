// The settings of the page, and what they ask of the server.

import { $, AXES } from "./elements.js";

export const SETTINGS = [
  "policy", "bytes", "attention", "mlp", "bits", "axes", "compare", "other", "other-bytes", "together", "temperature",
  "longest", "markdown", "colours",
];

export function value(id) {
  const field = $(id);
  return field.type === "checkbox" ? field.checked : field.type === "select-one" ? field.value : Number(field.value);
}

// What a bare number as a budget is a share of.
export function unit(offers) {
  return offers.fastest ? "time" : "bytes";
}

// The least share of the dense step's bytes, and of what budgets are shares of, after `context` tokens. Both fall with
// the context.
export function lowestBytes(offers, context) {
  return after(offers.lowest_bytes, context);
}

export function lowest(offers, context) {
  return offers.fastest ? after(offers.fastest, context).time : lowestBytes(offers, context);
}

function after(byContext, context) {
  const all = Object.entries(byContext);
  return (all.findLast(([length]) => Number(length) <= context) ?? all[0])[1];
}

// What an answer is asked under.
export function dial() {
  const policy = value("policy");
  if (policy === "dense") return { policy };
  if (!value("axes")) return { policy, budget: value("bytes") };
  return { policy, budget: Object.fromEntries(AXES.map((axis) => [axis, value(axis)])) };
}

export function second(offers) {
  if (value("other") === "dense") return { policy: "dense" };
  return { policy: value("policy") === "dense" ? offers.default_policy : value("policy"), budget: value("other-bytes") };
}

export function title({ policy, budget }, offers) {
  if (budget === undefined) return policy;
  if (typeof budget === "number") return `${policy}, budget ${budget.toFixed(2)}`;
  const axes = AXES.filter((axis) => offers.axes[axis].length > 1);
  return `${policy}, ${axes.map((axis) => `${axis} ${budget[axis]}`).join(", ")}`;
}

// The share that was asked for; null where axes were set instead.
export function asked({ budget }) {
  return typeof budget === "object" ? null : budget ?? 1;
}
