"""Names, timeouts and retry policies: every number that decides how long an operation is tried."""

from datetime import timedelta

from temporalio.common import SearchAttributeKey

from domain.model import ExecutionMode
from sagafence import ActivityPolicy, retry_policy

CHECKOUT_TASK_QUEUE = "checkout"
CHECKOUT_WORKFLOW = "Checkout"
"""The type of the workflow, as Temporal knows it."""
_WORKFLOW_ID_PREFIX = "checkout-"
BULK_WORKFLOW = "BulkCheckout"
"""The type of the workflow that processes the orders of a batch together."""
AUDIT_WORKFLOW = "Audit"
SWEEP_WORKFLOW = "Sweep"
LOOKUP_WORKFLOW = "Lookup"
"""The type of the workflow that reads orders from the database, for callers that talk to Temporal alone."""
NAMES_WORKFLOW = "LookUpNames"
"""The type of the workflow that looks up what the rows of a file name."""

# Set only when an order leaves the happy path, and once at its end where how the run closes does not show it: each
# upsert is a history event.
ORDER_STATUS = SearchAttributeKey.for_keyword("OrderStatus")
FAILED_STEP = SearchAttributeKey.for_keyword("FailedStep")
SEARCH_ATTRIBUTES = {ORDER_STATUS.name: "Keyword", FAILED_STEP.name: "Keyword"}


def checkout_workflow_id(order_id: str) -> str:
    """Name the one workflow that an order has."""
    return _WORKFLOW_ID_PREFIX + order_id


def local_attempt(mode: ExecutionMode) -> timedelta | None:
    """Return how long the local attempt of a step may take in this mode, or None where it has none."""
    return LOCAL_ATTEMPT if mode is ExecutionMode.LOCAL_FIRST else None


def order_id_of(workflow_id: str) -> str:
    """Undo `checkout_workflow_id`."""
    return workflow_id.removeprefix(_WORKFLOW_ID_PREFIX)


def bulk_workflow_id(digest: str) -> str:
    """Name the workflow of a batch, by its content: the same batch does not run twice."""
    return f"bulk-{digest}"


def audit_task_queue(task_queue: str) -> str:
    """Name the task queue of the audits, which has slots of its own: no order waits behind one."""
    return f"{task_queue}-audit"


RESERVE = ActivityPolicy(timedelta(seconds=5), timedelta(seconds=60), retry_policy(100, 5))
"""Step reserve: a short outage delays the order by a tenth of a second; after a minute it is rejected."""
PAY = ActivityPolicy(timedelta(seconds=5), timedelta(seconds=120), retry_policy(200, 10))
"""Step pay: outlasts a restart or a failover of Postgres."""
SHIP = ActivityPolicy(timedelta(seconds=5), timedelta(minutes=15), retry_policy(500, 30))
"""Step ship: the customer has paid, so giving up costs a refund."""
ENVIRONMENT = ActivityPolicy(timedelta(seconds=5), None, retry_policy(500, 30))
"""A step after its own policy, while Postgres refuses the service itself: no order is rejected for that."""
UNDO = ActivityPolicy(timedelta(seconds=10), timedelta(minutes=15), retry_policy(200, 60, stops_when_refused=False))
"""One round of an undo. Then the order is parked, and later rounds follow."""
RECORD = ActivityPolicy(timedelta(seconds=10), None, retry_policy(200, 60, stops_when_refused=False))
"""Recording what happened (close, complete, park, note, resolve), starting delegated sagas: never gives up."""
BATCH = ActivityPolicy(timedelta(seconds=10), timedelta(seconds=30), retry_policy(200, 5))
"""The transaction of a batch, and its undoing; where it keeps failing, each order gets a saga of its own."""
MAINTENANCE = ActivityPolicy(timedelta(seconds=60), timedelta(minutes=5), retry_policy(500, 10))
"""The sweep, the check of a file, recording what an audit found; a caller waits for the answer."""
AUDIT = ActivityPolicy(
    timedelta(minutes=30),
    timedelta(hours=1),
    retry_policy(500, 10),
    heartbeat=timedelta(seconds=30),
)
"""The audit, which reads every row: half a minute for a million orders (docs/performance.md); enough for 60 million."""
LOOKUP = ActivityPolicy(timedelta(seconds=5), timedelta(seconds=10), retry_policy(200, 2))
"""Reading an order's row for `starter.py status` and `list`: nothing depends on it, and it can be repeated."""

LOCAL_ATTEMPT = timedelta(seconds=2)
"""What the one local attempt of an operation may take: a hundred times what it needs.

Well below `WORKFLOW_TASK`, since it runs within one, and above the 1.5 s for which a statement waits for a lock."""

WORKFLOW_TASK = timedelta(seconds=5)
"""When a workflow task goes to another worker because this one, or its answer, was lost. Temporal's default is 10 s.

Above the 2 s after which the SDK calls a task deadlocked, so that a slow one is reported as what it is."""

STUCK_RETRY_FIRST = timedelta(hours=1)
STUCK_RETRY_LONGEST = timedelta(hours=24)
"""A stuck order tries again by itself after 1 h, 2 h, 4 h ... 24 h, 24 h; an operator need not wait."""

SWEEP_UNFINISHED_AFTER = timedelta(seconds=60)
"""How long an order must have been idle before the sweep checks whether its saga is alive."""
SWEEP_BATCH = 100
SWEEP_EVERY = timedelta(minutes=1)
AUDIT_EVERY = timedelta(minutes=5)
"""How often a worker's schedules run them, unless its settings say otherwise."""
SWEEP_RUN_TIMEOUT = timedelta(minutes=30)
"""When a run of the scheduled sweep is given up: one of twenty pages takes seconds; a longer sweep has several runs."""
AUDIT_RUN_TIMEOUT = timedelta(minutes=75)
"""When a scheduled audit is given up: after all that its activities may take together, and waiting for another one."""
LOOKUP_RUN_TIMEOUT = timedelta(seconds=15)
"""When a lookup is given up that a worker has taken: after all that its activity may take."""
AUDIT_AT_REST_AFTER = timedelta(hours=1)
"""How long an order must have been idle before the audit calls it unfinished."""
AUDIT_VIOLATIONS_SHOWN = 20
"""Violating rows that the audit returns for each check; it counts them all."""
