// All orders: how many there are of each status, and a page of them, kept up to date.

import { call } from "./api.js";
import { badge, h, instant, outside, problemText, renew, repeat, say } from "./dom.js";
import { STATUSES, money } from "./words.js";

const EVERY_MS = 3_000;
const COLUMNS = ["Order", "Status", "Customer", "Total", "Placed", "Reason"];

/** Make the view of a list: `query` has status, customer and cursor. */
export function listView(query) {
  const status = query.get("status") ?? "";
  const customer = query.get("customer") ?? "";
  return (parent, signal, from) => {
    const heading = h("h1", { tabindex: "-1", text: status ? `Orders: ${status}` : "Orders" });
    const counts = new Counts(status, customer);
    const table = new Table(heading);
    const trouble = h("div", { class: "problem", role: "alert", hidden: true });
    const state = h("span", { class: "hint", text: "Loading …" });
    const pause = h("button", { class: "quiet", type: "button", "aria-pressed": "false", text: "Pause updates" });
    const pager = h("nav", { class: "pager", "aria-label": "Pages of the list" });
    let isPaused = false;
    let isFirst = true;

    async function refresh() {
      if (isPaused && !isFirst) return;
      const asked = new URLSearchParams(customer ? { customer } : {});
      try {
        const page = new URLSearchParams(query);
        const [found, numbers] = await Promise.all([
          call(`/v1/orders?${page}`, { signal }),
          // The orders are worth more than their number: it may take too long where very many are under way.
          call(`/v1/counts?${asked}`, { signal }).catch(() => null),
        ]);
        if (signal.aborted) return;
        if (numbers) counts.show(numbers.counts);
        table.show(found.orders);
        renew(pager, found.next_cursor, () => pages(query, found.next_cursor));
        state.textContent = `As of ${new Date().toLocaleTimeString(undefined, { hourCycle: "h23" })}`;
        trouble.hidden = true;
        if (isFirst) table.focusOn(from);
        isFirst = false;
      } catch (problem) {
        if (signal.aborted) return;
        renew(trouble, [problem.title, problem.detail], () => problemText(problem));
        trouble.hidden = false;
      }
    }

    pause.addEventListener("click", () => {
      isPaused = !isPaused;
      pause.setAttribute("aria-pressed", String(isPaused));
      pause.textContent = isPaused ? "Paused: update again" : "Pause updates";
      if (!isPaused) refresh();
    });
    parent.append(
      heading,
      counts.element,
      filters(query, customer),
      trouble,
      h("div", { class: "state" }, state, pause),
      table.element,
      pager,
    );
    repeat(refresh, EVERY_MS, signal);
    return heading;
  };
}

function filters(query, customer) {
  const whose = h("input", { id: "customer", type: "search", autocomplete: "off", spellcheck: "false" });
  whose.value = customer;
  const which = h("input", { id: "order-id", type: "text", autocomplete: "off", spellcheck: "false", required: true });
  const filter = (event) => {
    event.preventDefault();
    location.hash = address(query, { customer: whose.value.trim() });
  };
  const open = (event) => {
    event.preventDefault();
    location.hash = orderAddress(which.value.trim());
  };
  return h(
    "div",
    { class: "filters" },
    h(
      "form",
      { role: "search", "aria-label": "Orders of a customer", onsubmit: filter },
      h("label", { for: "customer", text: "Customer" }),
      whose,
      h("button", { text: "Filter" }),
    ),
    h(
      "form",
      { role: "search", "aria-label": "One order", onsubmit: open },
      h("label", { for: "order-id", text: "Order id" }),
      which,
      h("button", { text: "Open" }),
    ),
  );
}

/** The number of orders of each status; each is a link to a list of them. */
class Counts {
  #numbers = new Map();
  #stuck = null;

  constructor(status, customer) {
    const query = new URLSearchParams(customer ? { customer } : {});
    const links = ["", ...STATUSES].map((each) => {
      const number = h("span", { class: "number", text: each ? "–" : "" });
      if (each) this.#numbers.set(each, number);
      const isThis = each === status ? "true" : null;
      return h(
        "li",
        {},
        h(
          "a",
          { href: address(query, { status: each }), "aria-current": isThis, "data-status": each || null },
          h("span", { text: each || "all" }),
          " ",
          number,
        ),
      );
    });
    this.element = h("nav", { "aria-label": "Orders by status" }, h("ul", { class: "counts" }, links));
  }

  show(counts) {
    for (const { status, orders, is_at_least: isMore } of counts) {
      const number = this.#numbers.get(status);
      if (!number) continue;
      number.textContent = `${orders}${isMore ? "+" : ""}`;
      number.parentElement.classList.toggle("some", orders > 0);
    }
    const stuck = counts.find(({ status }) => status === "stuck")?.orders ?? 0;
    if (this.#stuck !== null && stuck !== this.#stuck)
      say(stuck === 1 ? "1 order is stuck" : `${stuck} orders are stuck`);
    this.#stuck = stuck;
  }
}

/** The orders of a page. A row stays the same element while its order is listed, so that focus and scroll stay. */
class Table {
  #rows = new Map();
  #body = h("tbody", { role: "rowgroup" });
  #none = h("p", { class: "none", hidden: true, text: "No order is like that." });
  #heading;

  constructor(heading) {
    this.#heading = heading;
    const names = COLUMNS.map((name) =>
      h("th", { scope: "col", role: "columnheader", class: name.toLowerCase(), text: name }),
    );
    // The roles are said, since the narrow layout takes a table's own away.
    const table = h(
      "table",
      { role: "table", "aria-label": "Orders, the newest first" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, names)),
      this.#body,
    );
    this.element = h("div", { class: "orders" }, table, this.#none);
  }

  show(orders) {
    const listed = new Set(orders.map((order) => order.order_id));
    for (const [orderId, row] of this.#rows) {
      if (listed.has(orderId)) continue;
      if (row.contains(document.activeElement)) {
        const next = row.nextElementSibling ?? row.previousElementSibling;
        (next?.querySelector("a") ?? this.#heading).focus({ preventScroll: true });
      }
      row.remove();
      this.#rows.delete(orderId);
    }
    let place = this.#body.firstElementChild;
    for (const order of orders) {
      let row = this.#rows.get(order.order_id);
      if (!row) {
        row = newRow(order);
        this.#rows.set(order.order_id, row);
      }
      fill(row, order);
      if (row === place) place = row.nextElementSibling;
      else this.#body.insertBefore(row, place);
    }
    this.#none.hidden = orders.length > 0;
  }

  /** Put the focus back on the order that one comes back from. */
  focusOn(hash) {
    if (hash === null || document.activeElement !== this.#heading) return;
    for (const [orderId, row] of this.#rows) {
      if (orderAddress(orderId) === hash) row.querySelector("a").focus();
    }
  }
}

function newRow(order) {
  const cells = COLUMNS.map((name) => h("td", { role: "cell", class: name.toLowerCase() }));
  cells[0].append(h("a", { href: orderAddress(order.order_id) }, outside(order.order_id)));
  cells[2].append(outside(order.customer));
  cells[4].append(instant(order.created_at));
  return h("tr", { role: "row" }, cells);
}

function fill(row, order) {
  const [, status, , total, , reason] = row.children;
  renew(status, order.status, () => badge(order.status));
  renew(total, [order.total_minor, order.currency], () => money(order.total_minor, order.currency));
  renew(reason, order.reason, () => (order.reason ? outside(order.reason) : null));
}

function pages(query, next) {
  return [
    query.has("cursor") ? h("a", { href: address(query, {}), text: "Newest orders" }) : null,
    next ? h("a", { href: address(query, { cursor: next }), text: "Older orders" }) : null,
  ];
}

/** The address of a list: a change of what it shows begins with its first page. */
function address(query, changes) {
  const changed = new URLSearchParams(query);
  changed.delete("cursor");
  for (const [name, value] of Object.entries(changes)) {
    if (value) changed.set(name, value);
    else changed.delete(name);
  }
  return changed.size ? `#/?${changed}` : "#/";
}

export function orderAddress(orderId) {
  return `#/orders/${encodeURIComponent(orderId)}`;
}
