"""The worker: runs checkouts for Temporal on Postgres. Run as many as you like.

    python worker.py            run
    python worker.py --check    report whether it could, and what Postgres or Temporal lack
    python worker.py --version  print the release

Settings come from the environment: `TEMPORAL_*` as for every Temporal tool, ours as `CHECKOUT_*` (see
adapters/config.py). Without any, it works with what `make up` or `docker compose up` started.

SIGTERM or Ctrl-C drains: running steps are finished, no new ones are taken.
Exit status: 0 drained, or nothing is lacking; 1 Temporal or Postgres cannot be used or refuses the login, or saga.log
is not written any more; 2 the configuration or the usage is wrong.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # Before the imports, which take a second: the kernel withholds a signal without a handler from PID 1 of a
    # container, which would then be killed at the end of its grace period. Nothing has started yet that would have to
    # finish; an unfinished check has no result.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(len(sys.argv) > 1))

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Interceptor, PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.audit import Audit
from activities.batch_checkout import BatchCheckout
from activities.batch_steps import BatchSteps
from activities.inventory import Inventory
from activities.lookups import Lookups, Names
from activities.orders import Orders
from activities.payments import Payments
from activities.sagas import Sagas
from activities.shipping import Shipping
from activities.sweep import Sweep
from adapters import deployment, event_log, heartbeat, schedule_watch, schedules, schema, temporal_credentials
from adapters.config import WorkerSettings, WritesLog
from adapters.connector import Admission
from adapters.log_target import STDOUT
from adapters.process_exit import leave
from adapters.program import CannotRun, run_program, show
from adapters.readiness import (
    DATABASE_ADVICE,
    check,
    forget_heartbeat,
    make_engines,
    require_writable,
    wait_until_usable,
)
from adapters.streams import clean_streams
from adapters.temporal import ADVICE, RefuseWrongArguments
from adapters.worker_run import Companion, Failure, running, use_client
from domain import policies
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import (
    AuditWorkflow,
    LookupWorkflow,
    NamesWorkflow,
    SweepWorkflow,
    VersionedAudit,
    VersionedLookup,
    VersionedSweep,
)

_log = logging.getLogger("checkout.worker")

# The tasks of workflows that a killed worker had cached go to another worker after this long.
_STICKY_TIMEOUT = timedelta(seconds=3)
# The task of a batch is a whole batch and mostly waits for the database: with more at once than connections each takes
# longer, and one of more than five seconds is lost. A backlog starts with the most.
_FEWEST_WORKFLOW_TASKS = 10
# A poll holds a slot while it waits. After a burst of single orders many wait for tasks of cached workflows, of which
# batches have none: they would be left with few slots.
_SLOTS_PER_POLL = 4
_MOST_POLLS = 20


class CannotContinue(CannotRun):
    """A part of this process has ended, or what it was started with is no longer valid."""


def build_worker(  # noqa: PLR0913 - what differs between a worker and a test is said by name
    client: Client,
    engine: AsyncEngine,
    settings: WorkerSettings,
    *,
    long_query_engine: AsyncEngine | None = None,
    audit_engine: AsyncEngine | None = None,
    interceptors: Sequence[Interceptor] = (),
    is_strict: bool = False,
    on_fatal_error: Callable[[BaseException], Awaitable[None]] | None = None,
) -> Worker:
    """Build the worker: the one place that knows every workflow and activity.

    Args:
        client: where tasks come from.
        engine: the database of the activities.
        settings: the task queue, the limits and the version.
        long_query_engine: the same database, for the sweep; `engine` by default.
        audit_engine: the same database, for the audit; the sweep's by default.
        interceptors: additional ones, such as a test's that injects faults.
        is_strict: run the workflows in the SDK's sandbox, which imports their modules for each run and refuses what is
            not deterministic. The tests do; a worker saves the time (docs/performance.md).
        on_fatal_error: called with the reason why the worker or the one of the audits cannot go on.
    """
    inventory, payments, shipping = Inventory(engine), Payments(engine), Shipping(engine)
    orders, batches, steps = Orders(engine), BatchCheckout(engine), BatchSteps()
    audit, sweep = Audit(long_query_engine or engine, audit_engine), Sweep(long_query_engine or engine)

    def audits(worker: Worker) -> Worker:
        """Run one audit at a time. Unversioned: any build's audit is as good."""
        return Worker(
            worker.client,
            task_queue=policies.audit_task_queue(worker.task_queue),
            activities=[audit.run_audit],
            interceptors=interceptors,
            max_concurrent_activities=1,
            on_fatal_error=on_fatal_error,
        )

    version = deployment.deployment_of(settings)
    workflow_tasks = max(settings.database_pool_size, _FEWEST_WORKFLOW_TASKS)
    workflow_polls = min(_MOST_POLLS, workflow_tasks // _SLOTS_PER_POLL)
    on_any_version = (
        (VersionedAudit, VersionedSweep, VersionedLookup) if version else (AuditWorkflow, SweepWorkflow, LookupWorkflow)
    )
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=[CheckoutWorkflow, BulkCheckoutWorkflow, NamesWorkflow, *on_any_version],
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
            audit.run_audit,  # of audits that an older build has begun
            audit.record_findings,
            sweep.find_unfinished,
            sweep.find_contradictions,
            Lookups(engine).look_up_orders,
            Sagas().start_sagas,
            Names(long_query_engine or engine).look_up_names,
            batches.check_out_orders,
            batches.unwind_orders,
            steps.reserve_orders,
            steps.charge_orders,
            steps.ship_orders,
        ],
        deployment_config=version,
        interceptors=[RefuseWrongArguments(), *interceptors],
        plugins=[Companion(audits)],
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
        on_fatal_error=on_fatal_error,
    )


async def run(settings: WorkerSettings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        CannotStart: Temporal or Postgres cannot be used.
        CannotContinue: the follower of the event log has ended, or Postgres or Temporal refuses the login.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # SIGHUP ends a worker with a terminal; to the others it says that their log was rotated.
    loop.add_signal_handler(signal.SIGHUP, stop.set if os.isatty(0) else event_log.reopen)
    require_writable(settings)
    forget_heartbeat(settings.heartbeat_file)
    admission = Admission()
    engines = make_engines(settings, admission=admission)
    try:
        ready = asyncio.create_task(wait_until_usable(settings, engines))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            return
        client = ready.result()
        await _ensure_schedules(client, settings)
        follower = asyncio.create_task(_write_log(engines.steps, settings))
        locked_out = asyncio.create_task(admission.until_refused_for(settings.database_refused_seconds))
        failure = Failure()
        worker = build_worker(
            client,
            engines.steps,
            settings,
            long_query_engine=engines.long_query,
            audit_engine=engines.audit,
            on_fatal_error=failure.note,
        )
        async with running(worker, failure):
            _log.info(
                "ready: task queue %s, histories at %s, log in %s",
                settings.task_queue,
                settings.ui_url,
                _where_the_log_is(settings),
                extra={"action": "worker_ready"},
            )
            version = asyncio.create_task(deployment.follow(lambda: worker.client, settings))
            watch = asyncio.create_task(
                schedule_watch.follow(lambda: worker.client, settings.task_queue, _intervals(settings))
            )
            credentials = asyncio.create_task(
                temporal_credentials.follow(worker, use_client, settings.temporal_api_key_file)
            )
            guards = asyncio.create_task(schema.watch(engines.steps))
            alive = asyncio.create_task(
                heartbeat.beat(settings.heartbeat_file, lambda: worker.is_running and not follower.done())
            )
            ends: set[asyncio.Future[Any]] = {stopped, follower, locked_out, failure.known}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for background in (version, watch, credentials, guards):
                background.cancel()
            if locked_out.done():
                _log.error("%s", _lockout(admission, settings), extra={"action": "worker_locked_out"})
            _log.info("draining: running steps are finished", extra={"action": "worker_draining"})
        alive.cancel()  # the worker is alive until it is drained
        await _end(follower)
        if failure.known.done():
            raise CannotContinue(f"Temporal or its SDK has ended this worker: {failure.known.result()}\n{ADVICE}")
        if locked_out.done():
            raise CannotContinue(_lockout(admission, settings))
        locked_out.cancel()
    finally:
        await engines.dispose()
    _log.info("stopped", extra={"action": "worker_stopped"})


async def _write_log(engine: AsyncEngine, settings: WorkerSettings) -> None:
    if settings.writes_log is WritesLog.NEVER:
        await asyncio.Event().wait()
    if settings.log_file == STDOUT:
        await event_log.follow_to_stdout(engine)
    if settings.writes_log is WritesLog.ALWAYS:
        await event_log.follow(engine, settings.log_file, must_write=True)
    await event_log.follow(engine, settings.log_file)


def _where_the_log_is(settings: WorkerSettings) -> str:
    if settings.writes_log is WritesLog.NEVER:
        return "another worker's hands"
    return "standard output" if settings.log_file == STDOUT else str(settings.log_file)


async def _end(follower: "asyncio.Task[None]") -> None:
    """End the follower of the event log, which ends by itself only on a failure.

    Raises:
        CannotContinue: it has. A gap in saga.log would go unnoticed until the log is needed.
    """
    has_ended = follower.done()
    follower.cancel()
    [ended] = await asyncio.gather(follower, return_exceptions=True)
    if has_ended or not isinstance(ended, asyncio.CancelledError):
        failure = ended if isinstance(ended, BaseException) else None
        _log.critical("saga.log is not written any more", exc_info=failure, extra={"action": "log_follower_ended"})
        why = f"{type(failure).__name__}: {failure}" if failure else "its follower has ended"
        raise CannotContinue(f"saga.log is not written any more: {why}.\nWhat ran is finished; start the worker again.")


def _lockout(admission: Admission, settings: WorkerSettings) -> str:
    return (
        f"Postgres has refused every new session for {settings.database_refused_seconds:g} s: {admission.reason}\n"
        f"{DATABASE_ADVICE} The orders under way wait for a worker that can log in."
    )


def _intervals(settings: WorkerSettings) -> schedules.Every:
    return schedules.Every(
        sweep=timedelta(seconds=settings.sweep_every_seconds),
        audit=timedelta(seconds=settings.audit_every_seconds),
    )


async def _ensure_schedules(client: Client, settings: WorkerSettings) -> None:
    try:
        await schedules.ensure(client, settings.task_queue, _intervals(settings))
    except RPCError as error:
        # Checkouts work without; the next worker that starts tries again.
        _log.warning("the schedules of sweep and audit could not be made: %s", error.message)


async def _check(settings: WorkerSettings) -> None:
    await check(settings)
    show("Nothing is lacking: a worker can start.")


def main() -> int:
    """Run the worker and return the exit status."""
    return run_program(__doc__, WorkerSettings, {"": run, "--check": _check}, {})


if __name__ == "__main__":
    clean_streams()
    leave(main())
