// What the model is, and the policy's table of speed and loss.

import { $, button, element } from "./elements.js";

const COLUMNS = {
  context: (point) => point.context.toLocaleString("en"),
  budget: (point) => point.budget.toFixed(2),
  speed: (point) => `${point.speed.toFixed(2)}×`,
  perplexity: (point) => `${point.perplexity >= 1 ? "+" : "\u2212"}${Math.abs(100 * (point.perplexity - 1)).toFixed(1)} %`,
  "loss, nats": (point) => `${point.nats.toFixed(3)} [${point.low.toFixed(3)}, ${point.high.toFixed(3)}]`,
  "ms per token": (point) => point.step_ms.toFixed(1),
};

// Fill the dialog for a model of /v1/models. choose(budget): the user takes a budget of the table.
export function showCard(known, choose) {
  const offers = known.efficiency, shapes = offers.shapes, facts = $("card-facts"), table = $("card-budgets");
  facts.replaceChildren();
  table.replaceChildren();
  const fact = (name, text) => { element("dt", facts, "", name); element("dd", facts, "", text); };
  fact("Name", known.id);
  if (shapes) {
    const each = 2 * shapes.hidden * shapes.head_dim * (shapes.heads + shapes.kv_heads) + (shapes.gated ? 3 : 2) * shapes.hidden * shapes.intermediate;
    fact("Size", `${weights(shapes.layers * each)} weights in ${shapes.layers} layers, and a vocabulary of ${shapes.vocabulary.toLocaleString("en")}`);
  }
  fact("Context", `${known.max_model_len.toLocaleString("en")} tokens`);
  fact("Policies", `${offers.policies.join(", ")}; by default ${offers.default_policy}`);
  const measured = offers.measured;
  if (measured) {
    fact("Measured on", `${measured.processor || "an unnamed processor"}, ${measured.threads} threads, ${measured.backend}; ${measured.texts} texts per context, ${measured.tokens} tokens of each`);
  }
  const points = offers.budgets ?? [];
  $("card-note").textContent = points.length
    ? "Budget: share of the dense step's time. Loss: per token above the dense model, with its 95 % interval over texts."
    : "No policy with a measured curve is loaded: what a budget takes and loses is not known here.";
  if (!points.length) return;
  const head = element("tr", element("thead", table));
  for (const name of ["", ...Object.keys(COLUMNS)]) element("th", head, "", name).scope = "col";
  const body = element("tbody", table);
  for (const point of points) {
    const row = element("tr", body);
    button(element("td", row), "Use", "use", () => choose(point.budget)).setAttribute("aria-label", `Use budget ${point.budget.toFixed(2)}`);
    for (const show of Object.values(COLUMNS)) element("td", row, "", show(point));
  }
}

function weights(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)} billion` : `${Math.max(0.1, count / 1e6).toFixed(count < 1e7 ? 1 : 0)} million`;
}
