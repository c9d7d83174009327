"""Every setting of a worker reaches what it is for: seen from outside, on a worker.py that runs."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from adapters.config import StarterSettings, WorkerSettings
from domain import policies
from domain.policies import checkout_workflow_id
from tests.conftest import Database, Shop
from tests.integration.commands import DEADLINE_SECONDS, Commands, Ran
from tests.workflow.bulk_scenes import start_batch
from tests.workflow.deployments import is_known
from tests.workflow.sagas import until, was_kept_in_memory

# As setup.sql has it a statement waits for a row for 1.5 s: not long enough to look around. 3 s end the statement.
PATIENT = 'ALTER ROLE checkout IN DATABASE "{}" SET lock_timeout = 2900'
NEVER = {"CHECKOUT_SWEEP_EVERY_SECONDS": "0", "CHECKOUT_AUDIT_EVERY_SECONDS": "0"}
# The setting, and the test beside this one that fails when worker.py ignores it.
SEEN_BY = {
    "task_queue": "test_the_schedules_are_those_of_the_settings",
    "ui_url": "test_a_worker_says_where_its_histories_and_its_log_are",
    "database_url": "test_orders_are_written_where_the_settings_say",
    "database_url_file": "test_a_worker_refuses_a_secrets_file_that_is_not_there",
    "database_password_file": "test_a_worker_refuses_a_secrets_file_that_is_not_there",
    "database_refused_seconds": "test_a_worker_that_is_let_in_no_more_says_so_and_ends_with_1",
    "database_pool_size": "test_no_more_runs_at_once_than_the_settings_allow",
    "max_concurrent_activities": "test_no_more_runs_at_once_than_the_settings_allow",
    "max_cached_workflows": "test_workflows_are_kept_in_memory_or_not_as_the_settings_say",
    "shutdown_grace_seconds": "test_a_drained_worker_waits_no_longer_than_its_grace",
    "startup_timeout_seconds": "test_a_server_that_does_not_answer_is_given_up_when_the_settings_say",
    "sweep_every_seconds": "test_the_schedules_are_those_of_the_settings",
    "audit_every_seconds": "test_the_schedules_are_those_of_the_settings",
    "build_id": "test_a_worker_with_a_build_id_is_known_as_that_build",
    "deployment_name": "test_a_worker_with_a_build_id_is_known_as_that_build",
    "heartbeat_file": "test_a_worker_at_work_is_healthy_until_its_loop_is_blocked_or_it_ends",
    "log_file": "test_orders_are_written_where_the_settings_say",
    "log_level": "test_a_worker_says_as_much_as_its_log_level_allows",
    "writes_log": "test_a_worker_that_never_writes_the_log_writes_none",
    "log_format": "test_a_worker_writes_its_log_as_json",
}


async def schedule(client: Client, name: str) -> float | None:
    """Give the interval of a schedule in seconds; None where there is none."""
    try:
        described = await client.get_schedule_handle(name).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None
    [interval] = described.schedule.spec.intervals
    return interval.every.total_seconds()


def test_every_setting_of_a_worker_is_seen_by_a_test() -> None:
    for_starters = set(StarterSettings.model_fields) - {"task_queue", "ui_url"}

    here = Path(__file__).parent
    files = [*here.glob("test_worker_*.py"), here.parent / "faults" / "test_failover.py"]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)

    assert SEEN_BY.keys() == set(WorkerSettings.model_fields) - for_starters
    assert [test for test in SEEN_BY.values() if f"def {test}(" not in sources] == []


# What runs by itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sweep", "audit"),
    [
        ({"CHECKOUT_SWEEP_EVERY_SECONDS": "7", "CHECKOUT_AUDIT_EVERY_SECONDS": "11"}, 7, 11),
        (NEVER, None, None),
    ],
    ids=["other", "never"],
)
async def test_the_schedules_are_those_of_the_settings(
    settings: dict[str, str], sweep: float | None, audit: float | None, commands: Commands, client: Client
) -> None:
    queue = commands.environment["CHECKOUT_TASK_QUEUE"]

    commands.ready_worker(**settings)

    assert await schedule(client, f"sweep-{queue}") == sweep
    assert await schedule(client, f"audit-{queue}") == audit


async def test_a_worker_sweeps_and_audits_by_itself(commands: Commands, own_shop: Shop, database: Database) -> None:
    order = own_shop.order("alice")
    await own_shop.accept_by_hand(order)
    await database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")

    commands.ready_worker(CHECKOUT_SWEEP_EVERY_SECONDS="1", CHECKOUT_AUDIT_EVERY_SECONDS="1")

    async def both_have_run() -> bool:
        found = await database.value("SELECT count(*) FROM audit_events WHERE event = 'violated'")
        return await own_shop.order_status(order) == "completed" and found == 1

    await until(both_have_run)


# How much at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_batch", "settings", "at_most"),
    [
        (False, {}, 8),
        (False, {"CHECKOUT_DATABASE_POOL_SIZE": "2"}, 2),
        (False, {"CHECKOUT_MAX_CONCURRENT_ACTIVITIES": "3"}, 3),
        # One as a local attempt, and one as the activity that comes after it.
        (True, {"CHECKOUT_MAX_CONCURRENT_ACTIVITIES": "1"}, 2),
    ],
    ids=["default", "connections", "activities", "local activities"],
)
async def test_no_more_runs_at_once_than_the_settings_allow(
    is_batch: bool,
    settings: dict[str, str],
    at_most: int,
    commands: Commands,
    own_shop: Shop,
    database: Database,
) -> None:
    await database.run(PATIENT.format(database.name))
    commands.ready_worker(**NEVER, **settings)
    most = 0

    async with database.locked("SELECT FROM accounts WHERE account_id = 'alice' FOR UPDATE"):
        orders = [own_shop.order("alice", ("pen", 1)) for _ in range(8)]
        handles: list[WorkflowHandle[Any, Any]] = [
            await (start_batch(own_shop, [order]) if is_batch else own_shop.start(order)) for order in orders
        ]

        async def as_many_as_may() -> bool:
            nonlocal most
            most = max(most, await database.blocked())
            return bool(most >= (1 if is_batch else at_most))

        await until(as_many_as_may)
        seen_until = time.monotonic() + 1.5
        while time.monotonic() < seen_until:
            most = max(most, await database.blocked())
            await asyncio.sleep(0.02)

    assert 1 <= most <= at_most
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(handle.result() for handle in handles))


@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [({}, True), ({"CHECKOUT_MAX_CACHED_WORKFLOWS": "0"}, False)],
    ids=["kept", "not kept"],
)
async def test_workflows_are_kept_in_memory_or_not_as_the_settings_say(
    settings: dict[str, str], is_kept: bool, commands: Commands, own_shop: Shop
) -> None:
    commands.ready_worker(**NEVER, **settings)

    handle = await own_shop.start(own_shop.order("alice"))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await handle.result()

    assert await was_kept_in_memory(handle) is is_kept


# Whose limits ---------------------------------------------------------------------------------------------


async def test_sweep_and_audit_read_for_longer_than_a_step_may(
    commands: Commands, own_shop: Shop, database: Database
) -> None:
    """A step's statement ends after 3 s. A sweep and an audit that end so find nothing in a large database, ever."""
    # The sweep finds it to be malformed: so nobody else reads it.
    await own_shop.accept_by_hand(own_shop.order("alice"))
    await database.run("UPDATE orders SET fingerprint = 'another'")
    commands.ready_worker(**NEVER)
    # After the start, which refuses such a table. A policy is asked by whoever reads the table, and a notification
    # leaves a read-only transaction.
    for table in ("orders", "inventory"):
        await database.run(
            f"CREATE FUNCTION seen_{table}() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify("
            f" '{table}', extract(epoch FROM current_setting('statement_timeout')::interval)::text"
            " || ' ' || current_setting('work_mem')); RETURN true; END $$;"
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
            f"CREATE POLICY seen ON {table} TO checkout USING (seen_{table}())"
        )

    swept, of_sweeps = await _limits_seen(database, "orders", commands, "sweep")
    audited, of_audits = await _limits_seen(database, "inventory", commands, "audit")

    assert (swept.code, audited.code) == (2, 0), (swept, audited)
    for limits, policy in ((of_sweeps, policies.MAINTENANCE), (of_audits, policies.AUDIT)):
        attempt = policy.start_to_close.total_seconds()
        assert 0.9 * attempt < float(limits.split()[0]) < attempt
    assert of_audits.split()[1] == "64MB"
    assert of_sweeps.split()[1] != "64MB", "the sweep reads on the audit's connections, which a long audit keeps busy"


async def _limits_seen(database: Database, table: str, commands: Commands, command: str) -> tuple[Ran, str]:
    """Run a command; give what came of it, and with which limits the table was read meanwhile."""
    seen: set[str] = set()
    async with database.connected() as listener:
        await listener.add_listener(table, lambda *output: seen.add(str(output[3])))
        ran = await asyncio.to_thread(commands.starter, command, "--json")

        async def is_seen() -> bool:
            return bool(seen)

        await until(is_seen)
    [limits] = seen
    return ran, limits


# Where, and what is told -----------------------------------------------------------------------------------


async def test_orders_are_written_where_the_settings_say(
    commands: Commands, own_shop: Shop, database: Database
) -> None:
    log = commands.folder / "a folder" / "orders.log"
    log.parent.mkdir()
    commands.ready_worker(CHECKOUT_LOG_FILE=str(log))
    order = own_shop.order("alice")

    handle = await own_shop.start(order)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await handle.result()

    assert await database.value("SELECT status FROM orders") == "completed"

    async def is_written() -> bool:
        return f"{order.order_id} #3 paid -> completed" in log.read_text(encoding="utf-8")

    await until(is_written)
    assert not (commands.folder / "saga.log").exists()


def test_a_worker_says_where_its_histories_and_its_log_are(commands: Commands) -> None:
    url = commands.environment["CHECKOUT_DATABASE_URL"]
    worker = commands.ready_worker(
        CHECKOUT_UI_URL="https://temporal.example/ui/", CHECKOUT_DATABASE_URL=f"{url}?channel_binding=require"
    )

    output = worker.tail(100)

    queue, log = commands.environment["CHECKOUT_TASK_QUEUE"], commands.environment["CHECKOUT_LOG_FILE"]
    assert f"ready: task queue {queue}, histories at https://temporal.example/ui, log in {log}" in output
    # And what its database's URL asks for in vain.
    assert "the database's URL asks for channel_binding=require" in output


async def test_a_worker_says_as_much_as_its_log_level_allows(commands: Commands, own_shop: Shop) -> None:
    worker = commands.worker(CHECKOUT_LOG_LEVEL="WARNING")
    handle = await own_shop.start(own_shop.order("alice"))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await handle.result()
    assert await asyncio.to_thread(worker.stop) == 0

    # But for what the server of the tests lets everybody do.
    assert [line for line in worker.tail(1_000).splitlines() if " WARNING checkout.rights: " not in line] == []


async def test_a_worker_writes_its_log_as_json(commands: Commands, own_shop: Shop) -> None:
    worker = commands.ready_worker(CHECKOUT_LOG_FORMAT="json")
    order = own_shop.order("nemo")
    with contextlib.suppress(WorkflowFailureError):
        await (await own_shop.start(order)).result()

    async def order_is_reported() -> bool:
        return order.order_id in worker.tail(1_000)

    await until(order_is_reported)
    assert await asyncio.to_thread(worker.stop) == 0

    output = [json.loads(line) for line in worker.tail(10_000).splitlines()]
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in output)
    assert {entry.get("action") for entry in output} >= {"worker_ready", "order_moved", "worker_stopped"}
    moved = [entry for entry in output if entry.get("action") == "order_moved"]
    workflow_id = checkout_workflow_id(order.order_id)
    assert {(entry["order_id"], entry["workflow_id"]) for entry in moved} == {(order.order_id, workflow_id)}


async def test_a_worker_with_a_build_id_is_known_as_that_build(commands: Commands, own_shop: Shop) -> None:
    name = own_shop.task_queue

    worker = commands.ready_worker(CHECKOUT_BUILD_ID="b7", CHECKOUT_DEPLOYMENT_NAME=name, **NEVER)

    await until(lambda: is_known(own_shop, "b7"))

    async def tells_that_it_idles() -> bool:
        return f"version b7 of {name} is not current" in worker.tail(100)

    await until(tells_that_it_idles)
