// What an operator can do about an order, what that does, and the dialog that asks for the reason.

import { call } from "./api.js";
import { h, instant, outside, problemText } from "./dom.js";
import { undoOf } from "./words.js";

const LONGEST_REASON = 200;
const SETTLED = new Set(["resolved", "undone", "nothing to undo"]);
const NOTHING = {
  completed: "Nothing: it has completed. It cannot be cancelled any more.",
  rejected: "Nothing: it has ended.",
  cancelled: "Nothing: it has ended.",
  unwinding: "Nothing now: it is being undone, and a cancel would change nothing. If an undo keeps failing, it gets stuck, and you can retry or resolve it here.",
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

/** What can be done about an order as it is now. */
export function possible(order) {
  if (order.status === "stuck") return [retry(order), resolve(order)];
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

function retry(order) {
  const undos = stuckSteps(order).map(undoOf).join(" and ");
  const review = "Nothing has been undone yet: this begins to undo the order. Do it only if the parcel has not left.";
  return {
    verb: "retry",
    label: "Retry the undo",
    title: order.incident?.needs_review ? "Let it be undone" : "Fix the cause, then retry",
    isFirst: true,
    does: [
      order.incident?.needs_review ? review : `This tries ${undos} again, now.`,
      "If it works, the order ends by itself. If it fails again, the order stays stuck, and nothing is lost.",
    ],
  };
}

function resolve(order) {
  const steps = stuckSteps(order);
  const sequence = steps.length > 1 && steps[0] === "ship" ? " Resolve ship first: the other undos refuse before that." : "";
  return {
    verb: "resolve",
    label: "Resolve by hand",
    title: "Or undo it by hand, then say so",
    steps,
    does: [
      `Only after you have done ${steps.map(undoOf).join(" or ")} yourself, outside of this service, such as at the bank.${sequence}`,
      "The step then counts as settled for good: the service never does or undoes it for this order again, and changes no stock and no balance for it. You cannot take this back.",
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
    const asked = order.status === "stuck" ? events.findLast(({ event }) => event === "retry_requested") : undefined;
    const mark = JSON.stringify([order.status, actions, asked?.seq]);
    if (mark === this.#mark) return;
    this.#mark = mark;
    const focused = this.#content.contains(document.activeElement) ? document.activeElement.dataset.verb : null;
    this.#content.replaceChildren(...(asked ? [retried(asked)] : []), ...(actions.length ? actions.map((action) => this.#item(action)) : [h("p", { text: NOTHING[order.status] })]));
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
  return h("p", { class: "note" }, "A retry was requested at ", instant(event.at), ", and the undo has not succeeded since. A refusal shows within seconds; while Postgres is away, a round takes up to 15 minutes.");
}

/** The dialog of one request. It stays until the request is accepted, or its user leaves it. */
class Ask {
  #dialog;
  #orderId;
  #action;
  #accepted;
  #reason = h("input", { id: "reason", name: "reason", required: true, maxlength: LONGEST_REASON, autocomplete: "off", "aria-describedby": "reason-hint" });
  #trouble = h("div", { class: "problem", role: "alert", hidden: true });
  #confirm;
  #isSending = false;

  constructor(orderId, action, accepted, closed) {
    this.#orderId = orderId;
    this.#action = action;
    this.#accepted = accepted;
    this.#confirm = h("button", { class: action.verb === "retry" ? "primary" : "danger", text: action.label });
    const leave = h("button", { type: "button", text: "Back", onclick: () => this.#dialog.close() });
    this.#dialog = h("dialog", { "aria-labelledby": "ask-title", "aria-describedby": "ask-does", onclose: () => (this.#dialog.remove(), closed()) },
      h("form", { onsubmit: (event) => this.#send(event) },
        h("h2", { id: "ask-title", text: `${action.label}?` }),
        h("p", { class: "hint" }, "Order ", outside(orderId)),
        h("div", { id: "ask-does" }, action.does.map((text) => h("p", { text }))),
        action.steps ? choice(action.steps) : null,
        h("label", { for: "reason", text: "Reason" }),
        h("p", { id: "reason-hint", class: "hint", text: "Kept in the order's log with the name of your key. At most 200 characters." }),
        this.#reason,
        this.#trouble,
        // Enter presses the first button that submits, and only this one does.
        h("div", { class: "buttons" }, this.#confirm, leave)));
  }

  open() {
    document.body.append(this.#dialog);
    this.#dialog.showModal();
    (this.#dialog.querySelector("input[type=radio]:not(:checked)") ?? this.#reason).focus();
  }

  async #send(event) {
    event.preventDefault();
    if (this.#isSending) return;
    this.#busy(true);
    const body = { reason: this.#reason.value };
    const step = this.#dialog.querySelector("input[name=step]:checked");
    if (step) body.step = step.value;
    try {
      const path = `/v1/orders/${encodeURIComponent(this.#orderId)}/${this.#action.verb}`;
      const answer = await call(path, { method: "POST", body });
      this.#accepted(answer.detail);
      this.#dialog.close();
    } catch (problem) {
      this.#trouble.replaceChildren(...problemText(problem).filter(Boolean));
      this.#trouble.hidden = false;
      this.#busy(false);
    }
  }

  #busy(isSending) {
    this.#isSending = isSending;
    // Not disabled: that would take the focus away.
    this.#confirm.setAttribute("aria-disabled", String(isSending));
    this.#confirm.textContent = isSending ? "Sending …" : this.#action.label;
  }
}

function choice(steps) {
  return h("fieldset", {},
    h("legend", { text: "Which undo have you done by hand?" }),
    steps.map((step) => h("label", { class: "radio" },
      h("input", { type: "radio", name: "step", value: step, required: true, checked: steps.length === 1 }),
      `${step}: ${undoOf(step)}`)));
}
