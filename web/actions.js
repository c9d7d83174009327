// What an operator can do about an order, and what that does.

import { Ask } from "./ask.js";
import { h, instant } from "./dom.js";
import { CONTRADICTION, doOf, undoOf, undosOf } from "./words.js";

const SETTLED = new Set(["resolved", "undone", "nothing to undo"]);
const NOTHING = {
  completed: "Nothing: it has completed. It cannot be cancelled any more.",
  rejected: "Nothing: it has ended.",
  cancelled: "Nothing: it has ended.",
  unwinding:
    "Nothing now: it is being undone, and a cancel would change nothing. If an undo keeps failing, it gets stuck, and you can retry or resolve it here.",
  terminated: "Nothing here: the sweep runs by itself, and “python starter.py sweep” runs it now.",
};

/** The steps whose undo keeps failing. */
export function stuckSteps(order) {
  const states = new Map(order.steps.map(({ step, state }) => [step, state]));
  const named = order.incident?.steps ?? [];
  const isStuck = (step) => states.get(step) === "stuck" || (named.includes(step) && !SETTLED.has(states.get(step)));
  // The undos of the others refuse while the shipment is in effect.
  return ["ship", "pay", "reserve"].filter(isStuck);
}

/** Whether nothing is undone before an operator decides. */
export function needsReview(order) {
  const isContradicted = ({ state, detail }) => state === "stuck" && detail.startsWith(CONTRADICTION);
  return order.incident?.needs_review ?? order.steps.some(isContradicted);
}

/** What can be done about an order as it is now. */
export function possible(order) {
  const steps = stuckSteps(order);
  if (order.status === "stuck") return needsReview(order) ? [UNDO, settle(steps)] : [retry(steps), resolve(steps)];
  if (order.status === "running" || order.status === "pending") return [CANCEL];
  return [];
}

const CANCEL = {
  verb: "cancel",
  label: "Cancel the order",
  title: "Cancel it",
  does: [
    "Everything that was done is undone, the last step first: the shipment is cancelled, the payment refunded, the stock released. The order ends as cancelled.",
    "Once the parcel has been handed over, that is too late, and the order completes.",
  ],
};

// The database contradicts what the order has done: which of the two is right, a person has to find out.
const UNDO = {
  verb: "retry",
  label: "Undo the order",
  title: "If the parcel has not left",
  does: [
    "Undo the order: what the database has of it is undone, the last step first, and the order ends by itself.",
    "If an undo fails, the order gets stuck, and nothing is lost. Once it is undone, you cannot take this back.",
  ],
};

const FOR_GOOD =
  "The step then counts as settled for good: the service never does or undoes it for this order again, and changes no stock and no balance for it. You cannot take this back.";

function settle(steps) {
  return {
    verb: "resolve",
    label: "Resolve by hand",
    title: "If the parcel has left",
    options: steps.map((step) => [step, doOf(step)]),
    ask: "Which step have you put right?",
    does: [
      "Write what is missing into the books by hand: the payment, and the stock that has left. Then resolve each step, ship first.",
      FOR_GOOD,
    ],
  };
}

function retry(steps) {
  return {
    verb: "retry",
    label: "Retry the undo",
    title: "Fix the cause, then retry",
    isFirst: true,
    does: [
      `This tries ${undosOf(steps)} again, now.`,
      "If it works, the order ends by itself. If it fails again, the order stays stuck, and nothing is lost.",
    ],
  };
}

function resolve(steps) {
  const sequence =
    steps.length > 1 && steps[0] === "ship" ? " Resolve ship first: the other undos refuse before that." : "";
  return {
    verb: "resolve",
    label: "Resolve by hand",
    title: "Or undo it by hand, then say so",
    options: steps.map((step) => [step, undoOf(step)]),
    ask: "Which undo have you done by hand?",
    does: [
      `Only after you have done ${undosOf(steps, "or")} yourself, outside of this service, such as at the bank.${sequence}`,
      FOR_GOOD,
    ],
  };
}

/** The panel with everything that can be done. */
export class Actions {
  #heading = h("h2", { tabindex: "-1", text: "What you can do" });
  #content = h("div", { class: "actions" });
  #mark = "";
  #order = null;
  #accepted;

  /** `accepted` is called with the API's words once it has accepted a request. */
  constructor(accepted) {
    this.#accepted = accepted;
    this.element = h("section", { class: "card" }, this.#heading, this.#content);
  }

  show(order, events) {
    this.#order = order;
    const actions = possible(order);
    const isFailing = order.status === "stuck" && !needsReview(order);
    const asked = isFailing ? events.findLast(({ event }) => event === "retry_requested") : undefined;
    const mark = JSON.stringify([order.status, actions, asked?.seq]);
    if (mark === this.#mark) return;
    this.#mark = mark;
    const focused = this.#content.contains(document.activeElement) ? document.activeElement.dataset.verb : null;
    const items = actions.map((action) => this.#item(action));
    if (asked) items.unshift(retried(asked));
    this.#content.replaceChildren(...(items.length ? items : [h("p", { text: NOTHING[order.status] })]));
    if (focused !== null) {
      (this.#content.querySelector(`[data-verb="${focused}"]`) ?? this.#heading).focus({ preventScroll: true });
    }
  }

  /** Focus the button of an action, or where it was. */
  focusOn(verb) {
    (this.#content.querySelector(`[data-verb="${verb}"]`) ?? this.#heading).focus({ preventScroll: true });
  }

  #item(action) {
    const texts = action.does.map((text) => h("p", { text }));
    const id = `does-${action.verb}`;
    const button = h("button", {
      class: action.isFirst ? "primary" : action.verb === "retry" ? "" : "danger",
      type: "button",
      "data-verb": action.verb,
      "aria-haspopup": "dialog",
      "aria-describedby": id,
      text: `${action.label} …`,
      onclick: () => this.#ask(action),
    });
    return h("div", { class: "action" }, h("h3", { text: action.title }), h("div", { id }, texts), button);
  }

  #ask(action) {
    new Ask(this.#order.order_id, action, this.#accepted, () => this.focusOn(action.verb)).open();
  }
}

function retried(event) {
  return h(
    "p",
    { class: "note" },
    "A retry was requested at ",
    instant(event.at),
    ", and the undo has not succeeded since. A refusal shows within seconds; while Postgres is away, a round takes up to 15 minutes.",
  );
}
