// What an order is and what has happened to it: its facts, its steps with their undos, its events.

import { h, instant, outside } from "./dom.js";
import { ENDED, STEPS, happened, money } from "./words.js";

/** The facts of an order, as the parts of a list of descriptions. */
export function facts(order) {
  const lines = h(
    "ul",
    { class: "plain" },
    order.lines.map(({ sku, quantity }) => h("li", {}, `${quantity} × `, outside(sku))),
  );
  return [
    fact("Customer", outside(order.customer)),
    fact("Ordered", lines),
    fact("Total", money(order.total_minor, order.currency)),
    order.tracking_number ? fact("Tracking number", outside(order.tracking_number)) : null,
    fact("Placed", order.created_at ? instant(order.created_at) : "not in the database yet"),
    order.updated_at ? fact("Last change", instant(order.updated_at)) : null,
    fact("Temporal history", history(order)),
  ];
}

function fact(name, ...shown) {
  return h("div", {}, h("dt", { text: name }), h("dd", {}, ...shown));
}

function history({ status, links }) {
  if (links.history && /^https?:/i.test(links.history)) {
    const isBatch = !links.history.includes("/workflows/checkout-");
    return h(
      "a",
      { href: links.history, rel: "noopener noreferrer", target: "_blank" },
      isBatch ? "Open the history of its batch (new tab)" : "Open the history (new tab)",
    );
  }
  return status === "pending"
    ? "None: no workflow has been started for it."
    : "None now: Temporal keeps histories for a limited time, or does not answer. The events below are kept for good.";
}

/** Each step with its undo, as list items. */
export function steps(order, events, isReviewed) {
  return STEPS.map(({ step, does, undoes }) => {
    const found = order.steps.find((each) => each.step === step);
    const [done, undone] = stateOf(step, found, order, events, isReviewed);
    const detail = found?.detail && found.state !== "stuck" ? h("p", { class: "hint" }, outside(found.detail)) : null;
    return h("li", { class: "step" }, half(does, done), half(undoes, undone), detail);
  });
}

function half(name, [mark, words]) {
  return h(
    "p",
    { class: "half", "data-mark": mark },
    h("span", { class: "what", text: name }),
    " ",
    h("span", { class: "how", text: words }),
  );
}

const NOT_DUE = ["none", "not needed"];

function stateOf(step, found, order, events, isReviewed) {
  const wasDone = events.some((event) => event.changed_by === step);
  const done = wasDone ? ["good", "done"] : ["none", "not known"];
  switch (found?.state) {
    case undefined:
      return [["none", ENDED.has(order.status) ? "did not happen" : "not done yet"], NOT_DUE];
    case "done":
      return [["good", "done"], ["unwinding", "stuck"].includes(order.status) ? ["wait", "to be done"] : NOT_DUE];
    case "undone":
      return [
        ["good", "done"],
        ["good", "done"],
      ];
    case "nothing to undo":
      return [["none", "had no effect"], NOT_DUE];
    case "stuck":
      return [done, isReviewed ? ["wait", "waits for you"] : ["bad", "keeps failing"]];
    case "resolved":
      return [done, ["good", "resolved by hand"]];
    default:
      return [["wait", found.state], NOT_DUE];
  }
}

/** The events of an order, the oldest first. */
export class Timeline {
  #list = h("ol", { class: "timeline" });
  #none = h("p", { class: "none", text: "Nothing is in the database yet." });
  #reason = null;
  events = [];

  constructor() {
    this.element = h("div", {}, this.#none, this.#list);
  }

  get last() {
    return this.events.at(-1)?.seq ?? 0;
  }

  /** Add an event; return whether it is new. */
  add(event) {
    if (event.seq <= this.last) return false;
    this.events.push(event);
    this.#none.hidden = true;
    const isOperator = event.event === "retry_requested" || event.event === "step_resolved";
    // An unwind keeps its reason to the end: it is said once.
    const reason = event.reason === this.#reason ? null : event.reason;
    if (!isOperator) this.#reason = event.reason;
    this.#list.append(
      h(
        "li",
        { "data-status": isOperator ? "operator" : event.status },
        h("p", { class: "when" }, instant(event.at)),
        h("p", {}, h("strong", { text: happened(event) })),
        reason ? h("p", {}, outside(reason)) : null,
        h("p", { class: "hint" }, `No. ${event.seq}: ${event.event}, by `, outside(event.changed_by)),
      ),
    );
    return true;
  }
}
