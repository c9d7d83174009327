// The audit: whether every invariant of the books holds, and a run of it on request.

import { call } from "./api.js";
import { h, instant, outside, problemText, renew, repeat, say } from "./dom.js";

const EVERY_MS = 5_000;

/** The view of the audit. */
export function auditView(parent, signal) {
  const heading = h("h1", { tabindex: "-1", text: "Audit" });
  const state = h("div", { class: "audit", text: "Loading …" });
  const trouble = h("div", { class: "problem", role: "alert", hidden: true });
  const notice = h("div", { class: "notice", role: "status" });
  const button = h("button", { class: "primary", type: "button", text: "Run the audit now" });
  let isRunning = false;

  async function refresh() {
    try {
      const found = await call("/v1/audit", { signal });
      if (!signal.aborted) renew(state, found, () => findings(found));
    } catch (problem) {
      if (!signal.aborted) fail(problem);
    }
  }

  function fail(problem) {
    renew(trouble, [problem.title, problem.detail], () => problemText(problem));
    trouble.hidden = false;
  }

  async function run() {
    if (isRunning) return;
    isRunning = true;
    button.setAttribute("aria-disabled", "true");
    button.textContent = "Running …";
    trouble.hidden = true;
    notice.textContent = "";
    try {
      const { is_finished: isFinished, violation_count: violations } = await call("/v1/audits?wait=20", {
        method: "POST",
        signal,
      });
      notice.textContent = isFinished
        ? `The audit has finished: ${number(violations)}.`
        : "The audit goes on. What it finds is shown here.";
      await refresh();
    } catch (problem) {
      if (!signal.aborted) fail(problem);
    } finally {
      isRunning = false;
      button.setAttribute("aria-disabled", "false");
      button.textContent = "Run the audit now";
    }
  }

  button.addEventListener("click", run);
  parent.append(
    heading,
    h("p", {
      class: "means",
      text: "The audit checks every invariant of the books: that no stock and no money is lost or made up, that each step had its effect once, and that no order is left half done. It runs by itself, too.",
    }),
    h("div", { class: "buttons" }, button),
    notice,
    trouble,
    h("section", { class: "card", "aria-label": "What the audits found" }, state),
  );
  repeat(refresh, EVERY_MS, signal);
  say("");
  return heading;
}

function number(violations) {
  if (violations === 0) return "nothing is violated";
  return violations === 1 ? "1 violation" : `${violations} violations`;
}

function findings({ is_clean: isClean, findings: found, stuck_orders: stuck }) {
  const list = found.map(({ check_id: check, subject, detail, since }) =>
    h(
      "li",
      {},
      h("p", {}, h("strong", { text: check }), " ", outside(subject)),
      h("p", {}, outside(detail)),
      h("p", { class: "hint" }, "Since ", instant(since)),
    ),
  );
  return [
    h("p", {
      class: "verdict",
      "data-mark": isClean ? "good" : "bad",
      text: isClean ? "No invariant is violated." : `Open: ${number(found.length)}.`,
    }),
    h(
      "p",
      {},
      stuck
        ? h("a", { href: "#/?status=stuck", text: stuck === 1 ? "1 order is stuck" : `${stuck} orders are stuck` })
        : "No order is stuck.",
    ),
    list.length ? h("ul", { class: "findings" }, list) : null,
    list.length ? h("p", { class: "hint", text: "A finding is over once an audit does not find it again." }) : null,
  ];
}
