// Small helpers for building the page. Text never passes through HTML: ids and reasons may hold any character.

/** Make an element. Properties that begin with `on` are listeners, `text` is its text, the others are attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text from outside, which may run from right to left, and must not turn what is around it. */
export function outside(text) {
  return h("bdi", { text });
}

const SECONDS = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

/** An instant in the viewer's time zone; UTC is in its title. */
export function instant(iso) {
  const at = new Date(iso);
  return h("time", { datetime: iso, title: `${at.toISOString()} (UTC)`, text: SECONDS.format(at) });
}

/** The status of an order, as a word with a colour of its own. */
export function badge(status) {
  return h("span", { class: "badge", "data-status": status, text: status });
}

/** What went wrong: what happened, what to do, and where. */
export function problemText(problem) {
  const faults = problem.errors.map(({ pointer, detail }) =>
    h("li", {}, outside(`${pointer.replace(/^\//, "")}: ${detail}`)),
  );
  return [
    h("strong", { text: problem.title }),
    h("p", {}, outside(problem.detail)),
    faults.length ? h("ul", {}, faults) : null,
  ];
}

/** Tell those who cannot see it what has changed. */
export function say(text) {
  document.getElementById("live").textContent = text;
}

/** Replace the children of an element, but only when what they show has changed. A link in it keeps the focus. */
export function renew(element, shown, build) {
  const mark = JSON.stringify(shown);
  if (element.shownMark === mark) return;
  element.shownMark = mark;
  const focused = [...element.querySelectorAll("a")].indexOf(document.activeElement);
  element.replaceChildren(...[build()].flat().filter((child) => child !== null && child !== undefined));
  if (focused >= 0) element.querySelectorAll("a")[focused]?.focus({ preventScroll: true });
}

/** Wait, and not longer than the view lives. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Do something now and again and again, while the view lives and somebody can see it. */
export async function repeat(act, milliseconds, signal) {
  while (!signal.aborted) {
    if (!document.hidden) await act();
    await sleep(milliseconds, signal);
  }
}
