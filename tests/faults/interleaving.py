"""Interleavings of {do, do', undo, undo'} on one order, event by event, as Postgres' own isolation tester does it.

Each operation has a session of its own and two events: its *statement*, which lets it run up to its commit, and its
*commit*. It is held before the commit

* of a transaction that the client ends: in the client, before COMMIT is sent;
* of a single statement in autocommit, which has no such moment: in the server, by a trigger on the fence row that
  fires at the commit and waits for an advisory lock;
* of such a statement that wrote nothing, because the gate stayed shut: its commit changes nothing for others, but
  what it reads next, it reads in a new snapshot. It is held before that.

An operation that waits for a lock of another one is *waiting*, and its event is complete when it no longer does. A
commit whose turn comes while its operation is waiting cannot happen as asked: it is *overdue*, and happens as soon as
it can.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.audit import Audit
from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import create_engine
from devstack.stack import DevStack, psql
from domain.audit import AuditInput
from domain.model import CheckoutInput, Ending, OrderLine, Step, UndoInput
from sagafence import StepAlreadyCompensated, UndoOutcome, UndoResult
from tests.conftest import Database, cloned_database

DEADLINE_SECONDS = 30.0
"""Far above what any event takes on a busy machine, below the lock timeout that `GATES` sets."""
_LOOK_AFTER_SECONDS = 0.001

GATES = """
CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    gate text := current_setting('test.gate', true);
BEGIN
    IF gate <> '' THEN
        RAISE NOTICE 'held';  -- sent at once, whatever the transaction does next
        PERFORM pg_advisory_xact_lock_shared(gate::bigint);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON step_fence DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.phase = 'done') EXECUTE FUNCTION hold_commit();
DO $$ BEGIN
    EXECUTE format('ALTER ROLE checkout IN DATABASE %I SET lock_timeout = ''90s''', current_database());
    EXECUTE format('ALTER ROLE checkout IN DATABASE %I SET idle_in_transaction_session_timeout = ''90s''',
                   current_database());
END $$;
"""

_BLOCKERS = "SELECT pid, pg_blocking_pids(pid) AS blockers FROM unnest($1::integer[]) AS pid"


class Session:
    def __init__(self, name: str, number: int, url: str, changed: asyncio.Event) -> None:
        self.name = name
        self.gate = number
        self.engine = create_engine(url, pool_size=1, has_long_statements=True)
        self.pid = 0
        self._changed = changed
        self.reset()
        events = self.engine.sync_engine
        event.listen(events, "connect", self._connected)
        event.listen(events, "before_cursor_execute", self._before_statement)
        event.listen(events, "commit", self._before_commit)

    def reset(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.is_held = False
        self.is_waiting = False
        self.waited_for: set[str] = set()
        self.came_after: frozenset[str] = frozenset()
        self._may_commit = asyncio.Event()
        self._statements = 0

    @property
    def position(self) -> str:
        if self.task is None:
            return "has not begun"
        if self.task.done():
            return "has ended"
        return "is held" if self.is_held else "is waiting" if self.is_waiting else "is moving"

    @property
    def is_moving(self) -> bool:
        """Whether the operation has begun and will come to its commit, its end or a lock by itself."""
        return self.task is not None and not (self.task.done() or self.is_held or self.is_waiting)

    def let_commit(self) -> None:
        self._may_commit.set()
        self.is_held = False

    def _note_held(self) -> None:
        if not self._may_commit.is_set():
            self.is_held = True
            self._changed.set()

    async def _hold(self, _connection: Any) -> None:
        self._note_held()
        await self._may_commit.wait()

    def _connected(self, dbapi_connection: Any, _record: Any) -> None:
        driver: asyncpg.Connection = dbapi_connection.driver_connection
        self.pid = driver.get_server_pid()
        driver.add_log_listener(self._hear)
        dbapi_connection.run_async(lambda connection: connection.execute(f"SET test.gate = '{self.gate}'"))

    def _hear(self, _connection: Any, message: asyncpg.PostgresLogMessage) -> None:
        if message.message == "held":
            self._note_held()

    def _before_statement(self, connection: Connection, *_: Any) -> None:
        self._statements += self.task is not None
        if self._statements == 2 and connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            self._run_async(connection, self._hold)

    def _before_commit(self, connection: Connection) -> None:
        if self.task is not None:
            self._run_async(connection, self._hold)

    @staticmethod
    def _run_async(connection: Connection, work: Callable[[Any], Awaitable[None]]) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.run_async(work)


class Stepper:
    """The sessions of one test, and who decides which of them goes on.

    Args:
        url: the database, with `GATES`, as the service's role.
        admin_url: the same as the superuser, for asyncpg.
        names: one session for each.
    """

    def __init__(self, url: str, admin_url: str, names: Sequence[str]) -> None:
        self._admin_url = admin_url
        self._changed = asyncio.Event()
        self.sessions = {name: Session(name, n, url, self._changed) for n, name in enumerate(names, 1)}
        self.overdue: list[str] = []
        self.premature: list[str] = []
        self.ended: list[str] = []

    async def __aenter__(self) -> Self:
        self.director = await asyncpg.connect(self._admin_url)
        for session in self.sessions.values():
            async with session.engine.connect():
                pass
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [session.task for session in self.sessions.values() if session.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.director.close()
        for session in self.sessions.values():
            await session.engine.dispose()

    async def clear(self) -> None:
        """Shut every gate, for operations that have yet to begin."""
        for session in self.sessions.values():
            session.reset()
        self.overdue, self.premature, self.ended = [], [], []
        await self.director.execute("SELECT pg_advisory_unlock_all()")
        await self.director.execute(
            "SELECT pg_advisory_lock(gate) FROM unnest($1::bigint[]) AS gate",
            [session.gate for session in self.sessions.values()],
        )

    async def begin(self, name: str, operation: Awaitable[Any]) -> None:
        """Perform the statement of an operation: return when it is held before its commit, or waits."""
        session = self.sessions[name]
        session.came_after = frozenset(self.ended)
        session.task = asyncio.create_task(self._to_its_end(session, operation))
        await self._settle()

    async def commit(self, name: str) -> None:
        """Perform the commit of an operation, now or, where it is waiting, as soon as it can."""
        session = self.sessions[name]
        if not (session.is_held or session.is_waiting):
            self.premature.append(f"{name} {session.position} before its commit")
        if session.is_waiting:
            self.overdue.append(name)
        session.let_commit()
        await self.director.execute("SELECT pg_advisory_unlock($1::bigint)", session.gate)
        await self._settle()

    async def answers(self) -> dict[str, Any]:
        """Give what each operation answered or raised; all of them must have ended."""
        tasks = {name: session.task for name, session in self.sessions.items()}
        late = [name for name, task in tasks.items() if task is None or not task.done()]
        assert not late, f"every event is over, but not {late}: {self.told()}"
        answers = await asyncio.gather(*(task for task in tasks.values() if task is not None), return_exceptions=True)
        return dict(zip(tasks, answers, strict=True))

    def told(self) -> str:
        return ", ".join(f"{name} {session.position}" for name, session in self.sessions.items())

    async def _to_its_end(self, session: Session, operation: Awaitable[Any]) -> Any:
        try:
            return await operation
        finally:
            self.ended.append(session.name)
            for other in self.sessions.values():  # they may have waited for this one
                other.is_waiting = False
            self._changed.set()

    async def _settle(self) -> None:
        """Wait until every operation that has begun has ended, is held before the commit, or waits for another one."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while moving := [session for session in self.sessions.values() if session.is_moving]:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _LOOK_AFTER_SECONDS)
                if self._changed.is_set():
                    continue
                blockers = await self._blockers(moving)
                if all(blockers.values()) and not self._changed.is_set():
                    for session in moving:
                        session.is_waiting = True
                        session.waited_for |= blockers[session.name]

    async def _blockers(self, moving: Sequence[Session]) -> dict[str, set[str]]:
        """Name whom each of these sessions waits for. A gate is not among them: only the director holds one."""
        names = {session.pid: session.name for session in self.sessions.values()}
        rows = await self.director.fetch(_BLOCKERS, [session.pid for session in moving])
        return {names[row["pid"]]: {names[pid] for pid in row["blockers"] if pid in names} for row in rows}


DOS = ("do", "do'")
UNDOS = ("undo", "undo'")
OPERATIONS = (*DOS, *UNDOS)
LINES = (OrderLine("item-001", 1), OrderLine("item-002", 2))
BUYER = "buyer-001"
_UNITS = 3
_TOTAL_MINOR = 107 + 2 * 114

Schedule = tuple[str, ...]


def interleavings(operations: Sequence[str] = OPERATIONS) -> Iterator[Schedule]:
    """Give every sequence in which each operation occurs twice: first its statement, then its commit."""

    def go_on(so_far: Schedule) -> Iterator[Schedule]:
        if len(so_far) == 2 * len(operations):
            yield so_far
        for name in operations:
            if so_far.count(name) < 2:
                yield from go_on((*so_far, name))

    return go_on(())


@dataclass(frozen=True)
class Pair:
    """A step with its undo, and what the step changes while it stands."""

    before: tuple[Step, ...]
    do: Callable[[AsyncEngine, CheckoutInput], Awaitable[Any]]
    undo: Callable[[AsyncEngine, UndoInput], Awaitable[UndoResult]]
    effect: dict[str, int]
    rows: str
    """Counts the rows that the step ever wrote for order $1."""


PAIRS = {
    Step.RESERVE: Pair(
        (),
        lambda engine, order: Inventory(engine).reserve_inventory(order),
        lambda engine, undo: Inventory(engine).release_inventory(undo),
        {"held": _UNITS, "reserved": _UNITS},
        "SELECT count(*) FROM reservations WHERE order_id = $1",
    ),
    Step.PAY: Pair(
        (Step.RESERVE,),
        lambda engine, order: Payments(engine).charge_payment(order),
        lambda engine, undo: Payments(engine).refund_payment(undo),
        {"captured": _TOTAL_MINOR, "balance": -_TOTAL_MINOR},
        "SELECT count(*) FROM transfers WHERE order_id = $1",
    ),
    Step.SHIP: Pair(
        (Step.RESERVE, Step.PAY),
        lambda engine, order: Shipping(engine).ship_order(order),
        lambda engine, undo: Shipping(engine).cancel_shipment(undo),
        {"held": -_UNITS, "consumed": _UNITS, "reserved": -_UNITS, "on_hand": -_UNITS, "parcels": 1},
        "SELECT count(*) FROM shipments WHERE order_id = $1",
    ),
}

COLUMNS = ("held", "consumed", "captured", "parcels", "on_hand", "reserved", "balance")

# Goods and money, as the order's own rows tell it and as the shared rows do: what a committed snapshot shows.
STANDS = """
SELECT (SELECT coalesce(sum(quantity) FILTER (WHERE state = 'held'), 0) FROM reservations WHERE order_id = $1) AS held,
       (SELECT coalesce(sum(quantity) FILTER (WHERE state = 'consumed'), 0) FROM reservations WHERE order_id = $1)
           AS consumed,
       (SELECT coalesce(sum(CASE kind WHEN 'capture' THEN amount_minor ELSE -amount_minor END), 0)
          FROM transfers WHERE order_id = $1) AS captured,
       (SELECT count(*) FROM shipments WHERE order_id = $1 AND state <> 'cancelled') AS parcels,
       (SELECT sum(on_hand) FROM inventory WHERE sku IN ('item-001', 'item-002')) AS on_hand,
       (SELECT sum(reserved) FROM inventory WHERE sku IN ('item-001', 'item-002')) AS reserved,
       (SELECT balance_minor FROM accounts WHERE account_id = $3) AS balance,
       (SELECT phase FROM step_fence WHERE saga_id = $1 AND step = $2) AS phase,
       (SELECT had_effect FROM step_fence WHERE saga_id = $1 AND step = $2) AS had_effect
"""


class Play(ABC):
    """One schedule, played event by event, and what was found wrong in it."""

    def __init__(self, stepper: Stepper, order: CheckoutInput, schedule: Schedule) -> None:
        self._stepper = stepper
        self._order = order
        self._schedule = schedule
        self._answers: dict[str, Any] = {}
        self.problems: list[str] = []

    def __str__(self) -> str:
        return " ".join(self._schedule)

    @property
    def is_as_asked(self) -> bool:
        """Whether every commit happened when its turn came; otherwise blocking forbade the sequence."""
        return not self._stepper.overdue

    def happened(self) -> Counter[str]:
        told: Counter[str] = Counter()
        for name, session in self._stepper.sessions.items():
            waited_for = {_kind(other) for other in session.waited_for} or {"nobody"}
            told.update(f"{_kind(name)} waited for {other}: {self._told(name)}" for other in waited_for)
        return told

    async def run(self) -> None:
        await self._stepper.clear()
        before = await self._stands(Step.RESERVE)
        begun: set[str] = set()
        for name in self._schedule:
            try:
                if name in begun:
                    await self._stepper.commit(name)
                else:
                    begun.add(name)
                    await self._stepper.begin(name, self._operation(name))
            except TimeoutError as error:
                raise AssertionError(f"{self} hangs: {self._stepper.told()}") from error
            await self._check_snapshot(before)
        self.problems += self._stepper.premature
        self._answers = await self._stepper.answers()
        await self._check_end()
        self._check_sequence()

    async def _stands(self, step: Step) -> asyncpg.Record:
        return await self._stepper.director.fetchrow(STANDS, self._order.order_id, step.value, self._order.customer)

    def _require(self, holds: bool, told: str) -> None:
        if not holds:
            self.problems.append(told)

    @abstractmethod
    def _operation(self, name: str) -> Awaitable[Any]: ...

    @abstractmethod
    def _told(self, name: str) -> str: ...

    @abstractmethod
    async def _check_snapshot(self, before: asyncpg.Record) -> None: ...

    @abstractmethod
    async def _check_end(self) -> None: ...

    @abstractmethod
    def _check_sequence(self) -> None: ...


class Interleaving(Play):
    def __init__(self, stepper: Stepper, step: Step, order: CheckoutInput, schedule: Schedule) -> None:
        super().__init__(stepper, order, schedule)
        self._step = step
        self._pair = PAIRS[step]

    def __str__(self) -> str:
        return f"{self._step}: {super().__str__()}"

    @property
    def _results(self) -> list[Any]:
        return [self._answers[name] for name in DOS if not isinstance(self._answers[name], BaseException)]

    def _operation(self, name: str) -> Awaitable[Any]:
        engine = self._stepper.sessions[name].engine
        if name in DOS:
            return self._pair.do(engine, self._order)
        return self._pair.undo(engine, UndoInput(self._order, Ending.CANCELLED, "a reason"))

    async def _check_snapshot(self, before: asyncpg.Record) -> None:
        """Fence and effect agree, and the effect is there once or not at all."""
        now = await self._stands(self._step)
        effect = self._pair.effect if now["phase"] == "done" else {}
        for column in COLUMNS:
            self._require(
                now[column] == before[column] + effect.get(column, 0),
                f"{column} went from {before[column]} to {now[column]} while the fence says {now['phase']}",
            )

    async def _check_end(self) -> None:
        """The step is undone, and each do was answered with the one result or refused."""
        now = await self._stands(self._step)
        dos = [self._answers[name] for name in DOS]
        refused = [answer for answer in dos if isinstance(answer, StepAlreadyCompensated)]
        self._require(now["phase"] == "undone", f"in the end the fence says {now['phase']}")
        self._require(len(self._results) + len(refused) == 2, f"the dos answered {dos}")
        self._require(all(result == self._results[0] for result in self._results), f"two results: {dos}")
        self._require(now["had_effect"] == bool(self._results), f"had_effect {now['had_effect']}, but {dos}")
        self._check_undos()
        await self._check_tombstone()

    def _check_undos(self) -> None:
        """One undo is the one that counted, and reports what there was to undo; the other came second."""
        undos = [self._answers[name] for name in UNDOS]
        counted = UndoOutcome.REVERSED if self._results else UndoOutcome.NOTHING_TO_UNDO
        outcomes = [getattr(answer, "outcome", None) for answer in undos]
        self._require(set(outcomes) == {counted, UndoOutcome.ALREADY_UNDONE}, f"the undos answered {undos}")
        stored = vars(self._results[0]) if self._results else {}
        self._require(all(getattr(answer, "stored", None) == stored for answer in undos), f"{undos} of {stored}")

    async def _check_tombstone(self) -> None:
        """A step that was never done has never written a row."""
        if not self._results:
            rows = await self._stepper.director.fetchval(self._pair.rows, self._order.order_id)
            self._require(rows == 0, f"a tombstone, and {rows} rows of the step")

    def _check_sequence(self) -> None:
        """What had ended before an operation began, it knows of."""
        for name, session in self._stepper.sessions.items():
            if session.came_after.isdisjoint(UNDOS):
                continue
            answer = self._answers[name]
            if name in DOS:
                self._require(isinstance(answer, StepAlreadyCompensated), f"{name} came late and answered {answer}")
            else:
                outcome = getattr(answer, "outcome", None)
                self._require(outcome == UndoOutcome.ALREADY_UNDONE, f"{name} came second and answered {answer}")

    def _told(self, name: str) -> str:
        answer = self._answers[name]
        if isinstance(answer, StepAlreadyCompensated):
            return "refused after a reversal" if self._results else "refused by a tombstone"
        return answer.outcome.value if isinstance(answer, UndoResult) else "done"


@contextlib.contextmanager
def open_ground(stack: DevStack) -> Iterator[Database]:
    """Make a database with the gates, where a parcel to the buyer is a label first, which can be cancelled."""
    with cloned_database(stack) as database:
        label = f"UPDATE accounts SET delivery_zone = 'country' WHERE account_id = '{BUYER}'"
        psql(stack.postgres, database.name, "-v", "ON_ERROR_STOP=1", "-c", label, "-c", GATES)
        yield database


async def require_sound(stepper: Stepper, engine: AsyncEngine) -> None:
    """Check every invariant of the database, and that nobody met a deadlock."""
    audit = await Audit(engine).run_audit(AuditInput())
    deadlocks = await stepper.director.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )

    assert audit.violations == []
    assert deadlocks == 0


def _kind(name: str) -> str:
    return name.rstrip("'")
