"""Operations on Postgres, performed event by event, as Postgres' own isolation tester does.

Each operation has a session of its own and two events: its *statement*, which lets it run up to its commit, and its
*commit*. It is held before the commit

* of a transaction that the client ends: in the client, before COMMIT is sent;
* of a single statement in autocommit, which has no such moment: in the server, by a trigger on the fence row that
  fires at the commit and waits for an advisory lock;
* of such a statement that wrote nothing, because the gate stayed shut: its commit changes nothing for anybody, but
  what it reads next, it reads in a new snapshot. It is held before that.

An operation that waits for a lock of another one is *waiting*, and its event is complete when it no longer does. A
commit whose turn comes while its operation is waiting cannot happen as asked: it is *overdue*, and happens as soon as
it can.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import asyncpg
from sqlalchemy import Connection, event

from adapters.database import create_engine

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
"""What the test's database needs, once."""

_BLOCKERS = "SELECT pid, pg_blocking_pids(pid) AS blockers FROM unnest($1::integer[]) AS pid"


class Session:
    """One connection, and the operation that runs on it."""

    def __init__(self, name: str, number: int, url: str, changed: asyncio.Event) -> None:
        self.name = name
        self.gate = number
        self.engine = create_engine(url, pool_size=1, is_patient=True)
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
    def standing(self) -> str:
        if self.task is None:
            return "has not begun"
        if self.task.done():
            return "has ended"
        return "is held" if self.is_held else "is waiting" if self.is_waiting else "is moving"

    @property
    def is_moving(self) -> bool:
        """Tell whether the operation has begun and will come to its commit, its end or a lock by itself."""
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


class Stage:
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
            self.premature.append(f"{name} {session.standing} before its commit")
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
        return ", ".join(f"{name} {session.standing}" for name, session in self.sessions.items())

    async def _to_its_end(self, session: Session, operation: Awaitable[Any]) -> Any:
        try:
            return await operation
        finally:
            self.ended.append(session.name)
            for other in self.sessions.values():  # they may have waited for this one
                other.is_waiting = False
            self._changed.set()

    async def _settle(self) -> None:
        """Wait until everybody who has begun has ended, is held before the commit, or waits for another one."""
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
