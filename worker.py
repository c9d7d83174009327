"""The worker: takes checkouts from Temporal and does them on Postgres. Run as many as you like.

    python worker.py

Settings come from the environment: `TEMPORAL_*` as for every Temporal tool, ours as `CHECKOUT_*` (see
adapters/config.py). Without any, it works with what `make up` or `docker compose up` started.

SIGTERM or Ctrl-C drains: running steps are finished, no new ones are taken.
Exit status: 0 drained; 1 Temporal or Postgres cannot be used, or Postgres does not let us in any more;
2 the configuration or the usage is wrong.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import uvloop
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Interceptor, PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.batch_unwind import BatchUnwind
from activities.batches import Batches
from activities.inventory import Inventory
from activities.maintenance import Maintenance
from activities.orders import Orders
from activities.payments import Payments
from activities.sagas import Sagas
from activities.shipping import Shipping
from adapters import deployment, event_log
from adapters.config import ConfigurationError, WorkerSettings, load
from adapters.connector import Admission, CannotConnect
from adapters.database import create_audit_engine, create_engine, missing_tables, sqlstate
from adapters.database_url import parse
from adapters.pooling import LENDING_POOLER, Pooling, pooling_of
from adapters.telemetry import configure_logging, leave
from adapters.temporal import NOT_OURS_TO_ASK, RefuseWrongArguments, connect, connection_options
from client import schedules
from domain import policies
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import AuditWorkflow, SweepWorkflow
from workflows.versioned import VersionedAudit, VersionedSweep

_log = logging.getLogger("checkout.worker")
_T = TypeVar("_T")

# A worker that is killed holds its cached workflows' tasks for this long before another worker gets them.
_STICKY_TIMEOUT = timedelta(seconds=3)
# A workflow task of the fast lane is a whole order and waits for the database most of its time: more at once than there
# are connections answer later, each, and past five seconds for nothing. A backlog would begin with the most at once.
_FEWEST_WORKFLOW_TASKS = 10
# A poll holds a slot for as long as it waits, and after a burst of classic orders many wait on for tasks of workflows
# that are cached here, of which the fast lane has none: its orders would be left with few slots.
_SLOTS_PER_POLL = 4
_MOST_POLLS = 20
# A missing right or object that a statement came upon: waiting does not mend these for long.
_UNMENDABLE = ("28", "3D", "42")
_DATABASE_ADVICE = "Check CHECKOUT_DATABASE_URL and CHECKOUT_DATABASE_PASSWORD_FILE."
_GRACE_SECONDS = 5.0


class CannotStart(Exception):
    """Something outside this process has to be put right first. The message says what and how."""


class CannotContinue(Exception):
    """What this process was started with does not hold any more: it needs a new start. The message says what."""


def build_worker(  # noqa: PLR0913 - what differs between a worker and a test is said by name
    client: Client,
    engine: AsyncEngine,
    settings: WorkerSettings,
    *,
    patient_engine: AsyncEngine | None = None,
    audit_engine: AsyncEngine | None = None,
    interceptors: Sequence[Interceptor] = (),
    is_strict: bool = False,
) -> Worker:
    """Put the worker together: the one place that knows every workflow and activity.

    Args:
        client: where tasks come from.
        engine: the database that the activities work on.
        patient_engine: the same database, for the sweep; `engine` by default.
        audit_engine: the same database, for the audit; the sweep's by default.
        settings: the task queue, the limits and the version.
        interceptors: more of them, such as a test's that injects faults.
        is_strict: run the workflows in the SDK's sandbox, which imports their modules anew for each run and refuses
            what is not deterministic. The tests do; a worker saves the time (docs/performance.md).
    """
    inventory, payments, shipping = Inventory(engine), Payments(engine), Shipping(engine)
    orders, maintenance = Orders(engine), Maintenance(patient_engine or engine, audit_engine)
    batches = Batches(engine)
    version = deployment.deployment_of(settings)
    workflow_tasks = max(settings.database_pool_size, _FEWEST_WORKFLOW_TASKS)
    workflow_polls = min(_MOST_POLLS, workflow_tasks // _SLOTS_PER_POLL)
    maintenance_workflows = (VersionedAudit, VersionedSweep) if version else (AuditWorkflow, SweepWorkflow)
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=[CheckoutWorkflow, BulkCheckoutWorkflow, *maintenance_workflows],
        activities=[
            inventory.reserve_inventory,
            inventory.release_inventory,
            payments.charge_payment,
            payments.refund_payment,
            shipping.ship_order,
            shipping.cancel_shipment,
            orders.close_order,
            orders.complete_order,
            orders.park_order,
            orders.resolve_step,
            orders.note_retry,
            maintenance.run_audit,
            maintenance.record_findings,
            maintenance.find_unfinished,
            maintenance.find_contradictions,
            Sagas().start_sagas,
            batches.reserve_orders,
            batches.charge_orders,
            batches.ship_orders,
            BatchUnwind(engine).unwind_orders,
        ],
        deployment_config=version,
        interceptors=[RefuseWrongArguments(), *interceptors],
        workflow_runner=SandboxedWorkflowRunner() if is_strict else UnsandboxedWorkflowRunner(),
        max_cached_workflows=settings.max_cached_workflows,
        max_concurrent_workflow_tasks=workflow_tasks,
        max_concurrent_activities=settings.max_concurrent_activities,
        max_concurrent_local_activities=settings.max_concurrent_activities,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(
            minimum=2, maximum=workflow_polls, initial=min(5, workflow_polls)
        ),
        activity_task_poller_behavior=PollerBehaviorAutoscaling(minimum=2, maximum=_MOST_POLLS, initial=5),
        sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
        graceful_shutdown_timeout=timedelta(seconds=settings.shutdown_grace_seconds),
    )


async def run(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        CannotStart: Temporal or Postgres cannot be used.
        CannotContinue: Postgres lets nobody in any more.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _require_writable(settings.log_file)
    if caution := parse(settings.database_url).caution:
        _log.warning("CHECKOUT_DATABASE_URL: %s", caution)
    admission = Admission()
    url, password_file = settings.database_url, settings.database_password_file
    engine = create_engine(url, pool_size=settings.database_pool_size, password_file=password_file, admission=admission)
    patient_engine = create_engine(url, pool_size=2, is_patient=True, password_file=password_file, admission=admission)
    audit_engine = create_audit_engine(url, password_file=password_file, admission=admission)
    try:
        ready = asyncio.create_task(_wait_until_usable(settings, engine))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            return
        client = ready.result()
        await _ensure_schedules(client, settings)
        follower = asyncio.create_task(event_log.follow(engine, settings.log_file))
        locked_out = asyncio.create_task(admission.until_refused_for(settings.database_refused_seconds))
        async with build_worker(client, engine, settings, patient_engine=patient_engine, audit_engine=audit_engine):
            _log.info(
                "ready: task queue %s, histories at %s, log in %s",
                settings.task_queue,
                settings.ui_url,
                settings.log_file,
                extra={"action": "worker_ready"},
            )
            version = asyncio.create_task(deployment.follow(client, settings))
            await asyncio.wait({stopped, follower, locked_out}, return_when=asyncio.FIRST_COMPLETED)
            version.cancel()
            if follower.done():
                follower.result()
            if locked_out.done():
                _log.error("%s", _lockout(admission, settings), extra={"action": "worker_locked_out"})
            _log.info("draining: running steps are finished", extra={"action": "worker_draining"})
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        if locked_out.done():
            raise CannotContinue(_lockout(admission, settings))
        locked_out.cancel()
    finally:
        await engine.dispose()
        await patient_engine.dispose()
        await audit_engine.dispose()
    _log.info("stopped", extra={"action": "worker_stopped"})


def _lockout(admission: Admission, settings: WorkerSettings) -> str:
    return (
        f"Postgres has refused every new session for {settings.database_refused_seconds:g} s: {admission.reason}\n"
        f"{_DATABASE_ADVICE} The orders under way wait for a worker that is let in."
    )


async def _ensure_schedules(client: Client, settings: WorkerSettings) -> None:
    every = schedules.Every(
        sweep=timedelta(seconds=settings.sweep_every_seconds),
        audit=timedelta(seconds=settings.audit_every_seconds),
    )
    try:
        await schedules.ensure(client, settings.task_queue, every)
    except RPCError as error:
        # The checkout works without; the next worker that starts tries again.
        _log.warning("the schedules of sweep and audit could not be made: %s", error.message)


async def _wait_until_usable(settings: WorkerSettings, engine: AsyncEngine) -> Client:
    deadline = time.monotonic() + settings.startup_timeout_seconds
    await _until(deadline, "Postgres", lambda: _check_database(engine))
    identity = f"checkout-worker@{socket.gethostname()}-{os.getpid()}"
    try:
        where = connection_options()["target_host"]
    except Exception as error:
        raise CannotStart(f"The Temporal settings are wrong: {error}") from error
    client = await _until(deadline, f"Temporal at {where}", lambda: connect(identity=identity))
    await _until(deadline, f"Temporal at {where}", lambda: _check_search_attributes(client))
    return client


async def _until(deadline: float, what: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Try until it works, with waits of 0.2 s doubling to 5 s; give up at the deadline.

    A server that answers with a refusal gets a few seconds: on a first start its role, database and schema
    may be in the making.
    """
    wait = 0.2
    refused_until: float | None = None
    while True:
        try:
            return await attempt()
        except CannotStart:
            refused_until = refused_until or min(time.monotonic() + _GRACE_SECONDS, deadline)
            if time.monotonic() > refused_until:
                raise
        except (SQLAlchemyError, OSError, TimeoutError, RuntimeError, RPCError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            if _is_unmendable(error):
                refused_until = refused_until or min(time.monotonic() + _GRACE_SECONDS, deadline)
                if time.monotonic() > refused_until:
                    raise CannotStart(f"{what} refuses us: {reason}\n{_DATABASE_ADVICE}") from error
            elif time.monotonic() + wait > deadline:
                raise CannotStart(
                    f"{what} did not answer in time: {reason}\n"
                    "Is it running? `make up` or `docker compose up` starts everything; otherwise set "
                    "CHECKOUT_DATABASE_URL and TEMPORAL_ADDRESS."
                ) from error
            _log.info("waiting for %s: %s", what, reason, extra={"action": "waiting"})
        await asyncio.sleep(wait)
        wait = min(wait * 2, 5.0)


def _is_unmendable(error: Exception) -> bool:
    if isinstance(error, CannotConnect):
        return error.is_refusal
    return (sqlstate(error) or "").startswith(_UNMENDABLE)


async def _check_database(engine: AsyncEngine) -> None:
    if await pooling_of(engine) is Pooling.TRANSACTION:
        raise CannotStart(LENDING_POOLER)
    if missing := await missing_tables(engine):
        raise CannotStart(
            f"The database has no schema: {', '.join(missing)} missing.\n"
            "Run setup.sql on it as a superuser: psql -d checkout -f setup.sql"
        )


async def _check_search_attributes(client: Client) -> None:
    """Refuse a server that would reject every workflow task for an attribute it does not know."""
    try:
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        if error.status in NOT_OURS_TO_ASK:
            _log.warning("cannot see whether %s are registered", ", ".join(policies.SEARCH_ATTRIBUTES))
            return
        if error.status is RPCStatusCode.NOT_FOUND:
            raise CannotStart(
                f"Temporal has no namespace {client.namespace}.\nSet TEMPORAL_NAMESPACE, or run: "
                f"temporal operator namespace create --namespace {client.namespace}"
            ) from error
        raise  # it went away again, or is not quite up
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    missing = [name for name in policies.SEARCH_ATTRIBUTES if known.custom_attributes.get(name) != keyword]
    if missing:
        arguments = " ".join(f"--name {name} --type Keyword" for name in missing)
        raise CannotStart(
            f"Temporal's namespace {client.namespace} lacks search attributes: {', '.join(missing)}.\n"
            f"Run: temporal operator search-attribute create --namespace {client.namespace} {arguments}"
        )


def _require_writable(log_file: Path) -> None:
    try:
        log_file.open("ab").close()
    except OSError as error:
        raise CannotStart(
            f"The log cannot be written: {error}.\nSet CHECKOUT_LOG_FILE to a file in a folder that exists."
        ) from error


def main() -> int:
    """Run the worker and give the exit status."""
    if arguments := sys.argv[1:]:
        is_question = arguments[0] in {"-h", "--help"}
        (sys.stdout if is_question else sys.stderr).write(f"{__doc__}\nIt takes no arguments.\n")
        return 0 if is_question else 2
    try:
        settings = load(WorkerSettings)
        configure_logging(settings.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except ConfigurationError as error:
        sys.stderr.write(f"The configuration is wrong:\n{error}\n")
        return 2
    except (CannotStart, CannotContinue) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
