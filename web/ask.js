// The dialog in which an operator gives the reason for a request.

import { call } from "./api.js";
import { h, outside, problemText } from "./dom.js";

const LONGEST_REASON = 200;

/** The dialog of one request. It stays until the request is accepted, or its user leaves it. */
export class Ask {
  #dialog;
  #orderId;
  #action;
  #accepted;
  #reason = h("input", {
    id: "reason",
    name: "reason",
    required: true,
    maxlength: LONGEST_REASON,
    autocomplete: "off",
    "aria-describedby": "reason-hint",
  });
  #trouble = h("div", { class: "problem", role: "alert", hidden: true });
  #confirm;
  #isSending = false;

  constructor(orderId, action, accepted, closed) {
    this.#orderId = orderId;
    this.#action = action;
    this.#accepted = accepted;
    this.#confirm = h("button", { class: action.verb === "retry" ? "primary" : "danger", text: action.label });
    const leave = h("button", { type: "button", text: "Back", onclick: () => this.#dialog.close() });
    this.#dialog = h(
      "dialog",
      {
        "aria-labelledby": "ask-title",
        "aria-describedby": "ask-does",
        onclose: () => (this.#dialog.remove(), closed()),
      },
      h(
        "form",
        { onsubmit: (event) => this.#send(event) },
        h("h2", { id: "ask-title", text: `${action.label}?` }),
        h("p", { class: "hint" }, "Order ", outside(orderId)),
        h(
          "div",
          { id: "ask-does" },
          action.does.map((text) => h("p", { text })),
        ),
        action.options ? choice(action) : null,
        h("label", { for: "reason", text: "Reason" }),
        h("p", {
          id: "reason-hint",
          class: "hint",
          text: "Kept in the order's log with the name of your key. At most 200 characters.",
        }),
        this.#reason,
        this.#trouble,
        // Enter presses the first button that submits, and only this one does.
        h("div", { class: "buttons" }, this.#confirm, leave),
      ),
    );
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

function choice({ options, ask }) {
  return h(
    "fieldset",
    {},
    h("legend", { text: ask }),
    options.map(([step, name]) =>
      h(
        "label",
        { class: "radio" },
        h("input", { type: "radio", name: "step", value: step, required: true, checked: options.length === 1 }),
        `${step}: ${name}`,
      ),
    ),
  );
}
