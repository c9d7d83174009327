// What the service's words mean to a person: statuses, steps, events, causes, money.

/** The statuses in which a list can be filtered, those that need somebody first. */
export const STATUSES = ["stuck", "unwinding", "running", "pending", "completed", "rejected", "cancelled"];

export const ENDED = new Set(["completed", "rejected", "cancelled"]);

export const STEPS = [
  { step: "reserve", does: "Reserve stock", undoes: "Release stock" },
  { step: "pay", does: "Charge payment", undoes: "Refund payment" },
  { step: "ship", does: "Ship parcel", undoes: "Cancel shipment" },
];

/** What a status means, in a sentence or two. */
export const MEANS = {
  pending: "It was written into the database by hand. The next sweep starts it.",
  running: "Its steps are under way. Nothing is wrong.",
  completed: "All steps are done and the parcel is on its way.",
  unwinding: "It is being undone: what was done is taken back, the last step first.",
  rejected: "It was refused, and everything that had been done was undone. Nothing is kept.",
  cancelled: "It was cancelled, and everything that had been done was undone. Nothing is kept.",
  stuck: "It should be undone, and an undo keeps failing. It needs you.",
  byHand: " But what was resolved by hand is as somebody has left it.",
  review: "It waits for you to decide. Nothing has been undone.",
  terminated: "Its workflow was ended from outside. The next sweep undoes what was done.",
};

/** What a step does, in the middle of a sentence. */
export function doOf(step) {
  return `“${STEPS.find((each) => each.step === step)?.does ?? step}”`;
}

/** What the undo of a step is, in the middle of a sentence. */
export function undoOf(step) {
  const known = STEPS.find((each) => each.step === step);
  return known ? `“${known.undoes}”` : `the undo of ${step}`;
}

/** The undos of several steps, as “A”, “B” and “C”, or with another word. */
export function undosOf(steps, word = "and") {
  const undos = steps.map(undoOf);
  return [undos.slice(0, -1).join(", "), undos.at(-1)].filter(Boolean).join(` ${word} `);
}

/** How the cause begins that an operator has to look into before anything is undone. */
export const CONTRADICTION = "DatabaseContradictsHistory";

/** What happened, for an event of an order. */
export function happened({ event, changed_by: by, previous_status: before, reason }) {
  switch (event) {
    case "pending":
      return "Order written by hand";
    case "reserved":
      return "Stock reserved";
    case "paid":
      return "Payment charged";
    case "completed":
      return by === "handed over" ? "Order completed: the parcel had left" : "Parcel shipped, order completed";
    case "unwinding":
      return before === "stuck" ? "Undo goes on" : "Undo begun";
    case "stuck":
      return reason?.startsWith(CONTRADICTION) ? "Stopped for you to decide" : "Stuck: an undo keeps failing";
    case "retry_requested":
      return "Retry requested";
    case "step_resolved":
      return "Step resolved by hand";
    case "rejected":
      return "Order rejected, nothing kept";
    case "cancelled":
      return "Order cancelled, nothing kept";
    default:
      return event;
  }
}

const ADVICE = [
  [
    CONTRADICTION,
    "The database was restored to an earlier state, and does not have what this order has done. Find out whether the parcel has left: ask the carrier, and the bank for the payment.",
  ],
  [
    "DatabaseMisconfigured",
    "Postgres refuses the service itself: a login, a missing right, a missing table or column, or a read-only server. “python worker.py --check” names it. Put that right, then retry.",
  ],
  [
    "DatabaseRefusedStatement",
    "A trigger or a constraint in the database refuses the undo. Change or drop it, then retry.",
  ],
  ["DatabaseUnavailable", "Postgres did not answer: look at its connections, locks and disk. When it is back, retry."],
  ["CompensationImpossible", "Another step stands in the way: resolve the step that is named here first."],
];

/** Where to look first, by what an undo says. */
export function advice(cause) {
  const found = ADVICE.find(([name]) => cause.startsWith(name));
  return found ? found[1] : "Look at the Temporal history, and at the worker's log. Fix what it says, then retry.";
}

const DIGITS = new Map([
  ...[
    "BIF",
    "CLP",
    "DJF",
    "GNF",
    "ISK",
    "JPY",
    "KMF",
    "KRW",
    "PYG",
    "RWF",
    "UGX",
    "UYI",
    "VND",
    "VUV",
    "XAF",
    "XOF",
    "XPF",
  ].map((code) => [code, 0]),
  ...["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"].map((code) => [code, 3]),
  ...["CLF", "UYW"].map((code) => [code, 4]),
]);

/** An amount of minor units as the service writes it: 41.00 EUR, 4100 JPY. ISO 4217 decides, where Intl differs. */
export function money(minor, currency) {
  if (minor === null || !currency) return "—";
  const digits = DIGITS.get(currency) ?? 2;
  const text = String(minor).padStart(digits + 1, "0");
  const whole = text.slice(0, text.length - digits);
  return `${whole}${digits ? "." : ""}${text.slice(text.length - digits || text.length)} ${currency}`;
}
