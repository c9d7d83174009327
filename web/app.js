// The page's frame: the way in and out, and which view is shown. The address decides, so that every view has a link.

import { isSignedIn, session, signIn, signOut, call } from "./api.js";
import { auditView } from "./audit.js";
import { h, problemText, say } from "./dom.js";
import { listView } from "./list.js";
import { orderView } from "./order.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const signOutButton = document.getElementById("sign-out");

let leaving = new AbortController();
let shownBefore = null;

/** Show the view of the address. */
function show(problem = null) {
  leaving.abort();
  leaving = new AbortController();
  document.querySelectorAll("dialog").forEach((dialog) => dialog.remove());
  const isIn = isSignedIn();
  nav.hidden = signOutButton.hidden = !isIn;
  say("");
  const { view, place } = isIn ? viewAt(location.hash) : { view: signInView(problem), place: null };
  for (const link of nav.children) {
    if (link.getAttribute("href") === place) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const from = shownBefore;
  shownBefore = location.hash;
  main.replaceChildren();
  const heading = view(main, leaving.signal, from);
  document.title = `${heading.textContent} · Checkout`;
  // A reader of the screen, and the keyboard, begin where the new view begins. At first the browser's place is right.
  if (from !== null && !main.contains(document.activeElement)) heading.focus({ preventScroll: true });
  if (from !== null) window.scrollTo(0, 0);
}

function viewAt(hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const order = /^\/orders\/(.+)$/.exec(path);
  if (order) return { view: orderView(decoded(order[1])), place: null };
  if (path === "/audit") return { view: auditView, place: "#/audit" };
  return { view: listView(new URLSearchParams(query)), place: "#/" };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // typed by hand: there is no such order
  }
}

function signInView(problem) {
  return (parent) => {
    const field = h("input", {
      id: "key",
      type: "password",
      required: true,
      autocomplete: "current-password",
      spellcheck: "false",
      "aria-describedby": "key-hint",
    });
    const trouble = h(
      "div",
      { class: "problem", role: "alert", hidden: !problem },
      problem ? problemText(problem) : [],
    );
    const heading = h("h1", { tabindex: "-1", text: "Sign in" });
    const enter = async (event) => {
      event.preventDefault();
      signIn(field.value.trim());
      try {
        await call("/v1/orders?limit=1");
        show();
      } catch (refused) {
        if (isSignedIn()) signOut(refused); // a 401 has signed out already
      }
    };
    parent.append(
      h(
        "form",
        { class: "card narrow", onsubmit: enter },
        heading,
        h("label", { for: "key", text: "API key" }),
        h("p", {
          id: "key-hint",
          class: "hint",
          text: "Kept in this tab alone, until you sign out or close it. To cancel, retry and resolve orders it needs the scope “operate”.",
        }),
        field,
        trouble,
        h("div", { class: "buttons" }, h("button", { class: "primary", text: "Sign in" })),
      ),
    );
    field.focus();
    return heading;
  };
}

session.addEventListener("signed-out", ({ detail }) => show(detail));
signOutButton.addEventListener("click", () => signOut());
window.addEventListener("hashchange", () => show());
// The address is the views' own.
document.querySelector(".skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
show();
