// One order: why it is as it is, what can be done, and what has happened, live.

import { Problem, beforeNextStream, call, follow } from "./api.js";
import { Actions, needsReview, stuckSteps } from "./actions.js";
import { badge, h, instant, outside, problemText, renew, repeat, say, sleep } from "./dom.js";
import { Timeline, facts, steps } from "./story.js";
import { MEANS, advice, happened, undosOf } from "./words.js";

const ALONE = "Left alone, it tries again by itself, within the hour at first and within a day later.";
const UNTOUCHED = "Left alone, it stays as it is: nothing is undone before you ask for it.";
const EVERY_MS = 5_000; // for what changes without an event, such as what an undo says

/** Make the view of an order. */
export function orderView(orderId) {
  return (parent, signal) => {
    const view = new OrderView(orderId, signal);
    parent.append(...view.elements);
    view.run();
    return view.heading;
  };
}

class OrderView {
  heading;
  #path;
  #signal;
  #order = null;
  #etag = "";
  #isOver = false;
  #isReading = false;
  #wanted = false;
  #timeline = new Timeline();
  #badge = h("span", { class: "badge-place" });
  #means = h("p", { class: "means", text: "Loading …" });
  #notice = h("div", { class: "notice", role: "status" });
  #trouble = h("div", { class: "problem", role: "alert", hidden: true });
  #incident = h("section", { class: "card incident", "aria-labelledby": "why", hidden: true });
  #facts = h("dl", { class: "facts" });
  #steps = h("ol", { class: "steps" });
  #connection = h("span", { class: "hint", text: "Connecting …" });
  #actions = new Actions((detail) => this.#notice.replaceChildren(h("p", {}, outside(detail))));
  #body;

  constructor(orderId, signal) {
    this.#path = `/v1/orders/${encodeURIComponent(orderId)}`;
    this.#signal = signal;
    this.heading = h("h1", { tabindex: "-1" }, "Order ", outside(orderId));
    this.#body = h(
      "div",
      { class: "order-view", hidden: true },
      h(
        "div",
        { class: "column" },
        this.#incident,
        this.#actions.element,
        h(
          "section",
          { class: "card", "aria-labelledby": "steps" },
          h("h2", { id: "steps", text: "Steps and their undos" }),
          this.#steps,
        ),
      ),
      h(
        "div",
        { class: "column" },
        h(
          "section",
          { class: "card", "aria-labelledby": "events" },
          h("div", { class: "state" }, h("h2", { id: "events", text: "What happened" }), this.#connection),
          this.#timeline.element,
        ),
        h(
          "section",
          { class: "card", "aria-labelledby": "facts" },
          h("h2", { id: "facts", text: "The order" }),
          this.#facts,
        ),
      ),
    );
  }

  get elements() {
    const back = h("p", { class: "back" }, h("a", { href: "#/", text: "All orders" }));
    return [
      back,
      h("div", { class: "title" }, this.heading, this.#badge),
      this.#means,
      this.#notice,
      this.#trouble,
      this.#body,
    ];
  }

  /** Show the order until it has ended for good, or the view is left. */
  async run() {
    await Promise.all([
      this.#follow(),
      repeat(() => (this.#isOver ? undefined : this.#refresh()), EVERY_MS, this.#signal),
    ]);
  }

  /** Read the order; who asks meanwhile gets it read once more. */
  async #refresh() {
    this.#wanted = true;
    if (this.#isReading) return;
    this.#isReading = true;
    while (this.#wanted && !this.#signal.aborted) {
      this.#wanted = false;
      await this.#read();
    }
    this.#isReading = false;
  }

  async #read() {
    try {
      const answer = await call(this.#path, { etag: this.#etag, signal: this.#signal });
      if (this.#signal.aborted) return;
      this.#trouble.hidden = true;
      if (answer) {
        this.#etag = answer.etag;
        this.#order = answer.content;
      }
      this.#show();
    } catch (problem) {
      this.#fail(problem);
    }
  }

  /** Follow the events; what an event changes is read again. */
  async #follow() {
    while (!this.#signal.aborted && !this.#isOver) {
      let problem = null;
      try {
        const opened = () => (this.#connection.textContent = "Live");
        const events = follow(`${this.#path}/stream`, this.#timeline.last, this.#signal, opened);
        for (let next = await events.next(); ; next = await events.next()) {
          if (next.done) {
            this.#isOver = next.value;
            break;
          }
          if (this.#timeline.add(next.value) && this.#order) say(happened(next.value));
          this.#refresh();
        }
        if (this.#isOver) this.#refresh();
        this.#connection.textContent = this.#isOver ? "Nothing more will happen" : "Connecting again …";
      } catch (error) {
        problem = error;
        if (this.#signal.aborted || (problem.status >= 400 && problem.status < 429)) return;
        this.#connection.textContent = "Not live now; connecting again …";
      }
      if (!this.#isOver) await sleep(beforeNextStream(problem), this.#signal);
    }
  }

  #fail(problem) {
    if (this.#signal.aborted) return;
    if (!(problem instanceof Problem)) throw problem;
    renew(this.#trouble, [problem.title, problem.detail], () => problemText(problem));
    this.#trouble.hidden = false;
    if (this.#order) return;
    this.#means.textContent = "";
    this.#isOver = problem.status === 403 || problem.status === 404;
  }

  #show() {
    const order = this.#order;
    const events = this.#timeline.events;
    this.#body.hidden = false;
    renew(this.#badge, order.status, () => badge(order.status));
    renew(this.#means, [order.status, order.reason, order.steps, needsReview(order)], () => means(order));
    this.#incident.hidden = order.status !== "stuck";
    renew(this.#incident, [order.incident, stuckSteps(order)], () => (order.status === "stuck" ? incident(order) : []));
    renew(this.#facts, [order.updated_at, order.total_minor, order.links, order.tracking_number], () => facts(order));
    const isReviewed = needsReview(order);
    renew(this.#steps, [order.steps, order.status, isReviewed, events.length], () => steps(order, events, isReviewed));
    this.#actions.show(order, events);
  }
}

function means(order) {
  if (order.status === "stuck") return MEANS[needsReview(order) ? "review" : "stuck"];
  const isByHand = order.steps.some(({ state }) => state === "resolved");
  return [MEANS[order.status], isByHand ? MEANS.byHand : null, order.reason ? h("span", {}, " Why: ", outside(order.reason)) : null];
}

function incident(order) {
  const steps = stuckSteps(order);
  const bySaga = { cause: order.steps.find(({ state }) => state === "stuck")?.detail ?? "" };
  const { cause, opened_at: since } = order.incident ?? bySaga;
  const isReviewed = needsReview(order);
  const isFailing = `Why it is stuck: ${undosOf(steps)} ${steps.length > 1 ? "keep" : "keeps"} failing`;
  return [
    h("h2", { id: "why", text: isReviewed ? "Why it waits for you" : isFailing }),
    cause ? h("p", { class: "cause" }, outside(cause)) : h("p", { text: "The cause cannot be read now." }),
    h("p", { text: advice(cause) }),
    h(
      "dl",
      { class: "facts" },
      order.reason && order.reason !== cause
        ? h("div", {}, h("dt", { text: "Why it is being undone" }), h("dd", {}, outside(order.reason)))
        : null,
      since ? h("div", {}, h("dt", { text: "Stuck since" }), h("dd", {}, instant(since))) : null,
    ),
    h("p", { class: "hint", text: isReviewed ? UNTOUCHED : ALONE }),
  ];
}
