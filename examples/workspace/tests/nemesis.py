"""Many workspaces while everything fails: `python -m examples.workspace.tests.nemesis --sagas 1000 --seed 1`.

Postgres is stopped at once, Temporal, the worker and the provider are killed, one after the other, and a share of all
requests to the provider is cut, late, doubled or lied about. A share of the sagas is terminated on its way and started
again, and of those two in three are cancelled. In the end our books and the provider's are compared.
Status 0: they are equal, nobody was charged twice and nothing is unknown. Status 1: standard error says what differs.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

import sagafence
from examples.workspace.model import Workspace
from examples.workspace.provider.process import ProviderProcess
from examples.workspace.provider.proxy import FaultProxy
from examples.workspace.worker import TASK_QUEUE
from examples.workspace.workflow import OpenWorkspace
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.process import ChildProcess
from sagafence.devservers.temporal import TemporalServer

SCHEMA = Path(__file__).parents[1] / "schema.sql"
ROOT = Path(__file__).parents[3]
SHARE = 0.1
LOST = 0.2
"""The share of sagas whose run is terminated."""


class Stage:
    """Everything that can fail, each part as a process."""

    def __init__(self, folder: Path) -> None:
        self.postgres = PostgresServer(folder / "postgres", port=free_port(), log=folder / "postgres.log")
        self.temporal = TemporalServer(
            port=free_port(), ui_port=None, log=folder / "temporal.log", db_file=folder / "temporal.db"
        )
        self.provider = ProviderProcess(folder / "provider")
        self._folder = folder

    def start(self) -> None:
        self.postgres.start()
        self.postgres.psql("postgres", "-f", str(SCHEMA), "-c", "UPDATE seat_pools SET free = 1000000")
        self.temporal.start()
        self.provider.start()

    def start_worker(self, provider_url: str) -> None:
        environment = {
            **os.environ,
            "DATABASE_URL": self.postgres.url(),
            "TEMPORAL_ADDRESS": self.temporal.address,
            "PROVIDER_URL": provider_url,
            "PYTHONPATH": str(ROOT),
        }
        self.worker = ChildProcess(
            "worker",
            [sys.executable, "-m", "examples.workspace.worker"],
            log=self._folder / "worker.log",
            env=environment,
            cwd=ROOT,
        )
        self.worker.start()

    def stop(self) -> None:
        self.worker.kill()
        self.provider.kill()
        self.temporal.stop()
        self.postgres.remove()

    def strikes(self) -> dict[str, Callable[[], None]]:
        return {
            "postgres": lambda: self._restart(lambda: self.postgres.stop(immediate=True), self.postgres.start),
            "temporal": lambda: self._restart(self.temporal.kill, self.temporal.start),
            "worker": lambda: self._restart(self.worker.kill, self.worker.start),
            "provider": lambda: self._restart(self.provider.kill, self.provider.start),
            "provider, paused": lambda: self._restart(self.provider.pause, self.provider.resume, 4.0),
        }

    @staticmethod
    def _restart(end: Callable[[], None], start: Callable[[], None], seconds: float = 0.5) -> None:
        end()
        time.sleep(seconds)
        start()


async def nemesis(folder: Path, sagas: int, seed: int, at_once: int, every: float) -> list[str]:
    """Open so many workspaces under fire, and return what is wrong in the end."""
    draw = random.Random(seed)
    stage = Stage(folder)
    struck: Counter[str] = Counter()
    try:
        stage.start()
        # It keeps no connection: Postgres is stopped meanwhile.
        engine = create_async_engine(stage.postgres.url(), poolclass=NullPool)
        await sagafence.install(engine)
        with FaultProxy(stage.provider.url, slow_seconds=0.5, late_seconds=2.0) as proxy:
            proxy.strike_at_random(SHARE, seed)
            stage.start_worker(proxy.url)
            client = await Client.connect(stage.temporal.address, runtime=quiet())
            striking = asyncio.create_task(strike(stage, draw, struck, every))
            endings = await open_all(client, draw, sagas, at_once, struck)
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)
            proxy.heal()
            late = await asyncio.to_thread(proxy.deliver_late)
            requests = {fault.name: n for fault, n in proxy.struck.items()}
            print(f"struck: {dict(struck)}\nrequests: {requests}, and {len(late)} that arrived after the end")
        print(f"endings: {dict(Counter(endings.values()))}")
        wrong = await differences(engine, stage.provider.books(), endings)
        await engine.dispose()
        return wrong
    finally:
        stage.stop()


def quiet() -> Runtime:
    """Return a runtime that does not tell of each call that Temporal did not answer."""
    only_errors = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=only_errors)))


async def strike(stage: Stage, draw: random.Random, struck: Counter[str], every: float) -> None:
    strikes = stage.strikes()
    while True:
        await asyncio.sleep(draw.uniform(0.5, 1.5) * every)
        name = draw.choice(list(strikes))
        # To its end, also when the sagas have ended meanwhile.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(strikes[name])))
        struck[name] += 1


async def open_all(
    client: Client, draw: random.Random, sagas: int, at_once: int, struck: Counter[str]
) -> dict[str, str]:
    free = asyncio.Semaphore(at_once)
    endings: dict[str, str] = {}

    async def open_one(ws: Workspace) -> None:
        async with free:
            if draw.random() < LOST:
                struck[await lose(client, ws, draw)] += 1
            endings[ws.workspace_id] = await ending(client, ws)
            if len(endings) % 500 == 0:
                print(f"{len(endings)} of {sagas}", flush=True)

    plans = draw.choices(["team", "company", "pilot"], [8, 1, 1], k=sagas)
    # Of ten neighbours two want the same name.
    names = [f"name-{n - (n % 10 == 9)}" for n in range(sagas)]
    await asyncio.gather(
        *(open_one(Workspace(f"ws-{n}", names[n], plans[n])) for n in range(sagas)),
    )
    return endings


async def lose(client: Client, ws: Workspace, draw: random.Random) -> str:
    """Terminate a run on its way and start another, which goes on, or is cancelled sooner or later."""
    handle = client.get_workflow_handle(ws.workspace_id)
    again = draw.choice(["goes on", "is cancelled", "is cancelled before its first task"])
    delay = timedelta(seconds=0.5) if again == "is cancelled before its first task" else None
    await insist(lambda: start(client, ws, WorkflowIDReusePolicy.REJECT_DUPLICATE))
    await asyncio.sleep(draw.uniform(0, 2))
    await insist(lambda: handle.terminate("lost"))
    await insist(lambda: start(client, ws, WorkflowIDReusePolicy.ALLOW_DUPLICATE, delay))
    if again == "is cancelled":
        await asyncio.sleep(draw.uniform(0, 1))
    if again != "goes on":
        await insist(handle.cancel)
    return f"lost, and its second run {again}"


async def insist(ask: Callable[[], Awaitable[None]]) -> None:
    """Ask until Temporal answers, also that there is no such run any more."""
    while True:
        try:
            return await ask()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            await asyncio.sleep(0.5)  # Temporal is away


async def start(client: Client, ws: Workspace, reuse: WorkflowIDReusePolicy, delay: timedelta | None = None) -> None:
    # Raised where it was started and ended before we heard that it was started.
    with suppress(WorkflowAlreadyStartedError):
        await client.start_workflow(
            OpenWorkspace.run,
            ws,
            id=ws.workspace_id,
            task_queue=TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=reuse,
            start_delay=delay,
        )


async def ending(client: Client, ws: Workspace) -> str:
    while True:
        try:
            await start(client, ws, WorkflowIDReusePolicy.REJECT_DUPLICATE)
            await client.get_workflow_handle(ws.workspace_id).result()
        except WorkflowFailureError as error:
            return cause_of(error)
        except RPCError:
            await asyncio.sleep(0.5)  # Temporal is away
        else:
            return "completed"


def cause_of(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "type", None) or type(error).__name__


async def differences(engine: Any, books: dict[str, Any], endings: dict[str, str]) -> list[str]:
    """Compare what sagas said in the end with our books and the provider's."""
    completed = {saga for saga, how in endings.items() if how == "completed"}
    async with engine.connect() as connection:
        ours = (await connection.execute(text("SELECT workspace_id FROM subdomains"))).scalars().all()
        seats = (await connection.execute(text("SELECT sum(1000000 - free) FROM seat_pools"))).scalar_one()
        open_sagas = (await connection.execute(text("SELECT count(*) FROM sagas WHERE state <> 'ended'"))).scalar_one()
        unknown = await connection.execute(
            text("SELECT saga_id, step, phase FROM external_steps WHERE phase NOT IN ('done', 'undone', 'never')")
        )
        unsettled = [tuple(row) for row in unknown]
    there = {
        "subdomains": Counter(ours),
        "tenants": Counter(one["reference"] for one in books["tenants"] if not one["deleted"]),
        "invoices": Counter(one["reference"] for one in books["invoices"]),
        "mails": Counter(one["reference"] for one in books["mails"]),
    }
    wanted = Counter(completed)
    return [
        *(
            f"{what}: too many {dict(found - wanted)}, missing {dict(wanted - found)}"
            for what, found in there.items()
            if found != wanted
        ),
        *([f"{seats} seats are taken by {len(completed)} workspaces"] if seats != len(completed) else []),
        *([f"{open_sagas} sagas have not ended"] if open_sagas else []),
        *([f"unknown: {unsettled}"] if unsettled else []),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.workspace.tests.nemesis")
    parser.add_argument("--sagas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=50, help="how many workspaces are being opened at a time")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two strikes, on average")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wrong = asyncio.run(nemesis(Path(temporary), given.sagas, given.seed, given.at_once, given.every))
    for line in wrong:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # see start.py
