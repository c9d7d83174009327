"""The checks of a worker's start: Postgres, Temporal and the files that it writes."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from adapters import heartbeat, rights, schema
from adapters.config import ConfigurationError, WorkerSettings, WritesLog
from adapters.connector import CONNECTOR, Admission, Connector
from adapters.database import Access, create_audit_engine, create_engine
from adapters.log_file import opened
from adapters.log_target import STDOUT, lock_of
from adapters.pooling import LENDING_POOLER, Pooling, pooling_of
from adapters.program import CannotRun
from adapters.temporal import ADVICE, NOT_OURS_TO_ASK, connect, connection_options, is_refused, place
from domain import policies
from sagafence import CannotConnect, sqlstate

DATABASE_ADVICE = (
    "Check CHECKOUT_DATABASE_URL. Where CHECKOUT_DATABASE_URL_FILE or CHECKOUT_DATABASE_PASSWORD_FILE is set, check "
    "that file."
)

_log = logging.getLogger("checkout.worker")
_T = TypeVar("_T")

# A login, a database, or a missing right or object: waiting rarely fixes these.
_PERMANENT = ("28", "3D", "42")
_GRACE_SECONDS = 5.0
_KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


class CannotStart(CannotRun):
    """A worker cannot start."""


class Engines(NamedTuple):
    """The database's engines, by how long their statements may take."""

    steps: AsyncEngine
    long_query: AsyncEngine
    """For the long queries of the sweep."""
    audit: AsyncEngine

    async def dispose(self) -> None:
        """Close every session."""
        for engine in self:
            await engine.dispose()


def make_engines(
    settings: WorkerSettings, *, pool_size: int | None = None, admission: Admission | None = None
) -> Engines:
    """Make the engines that the settings describe. Nothing is connected yet."""
    url = settings.database_url.get_secret_value()
    size = pool_size or settings.database_pool_size
    access = Access(
        url_file=settings.database_url_file, password_file=settings.database_password_file, admission=admission
    )
    return Engines(
        create_engine(url, pool_size=size, **access),
        create_engine(url, pool_size=2, has_long_statements=True, **access),
        create_audit_engine(url, **access),
    )


async def wait_until_usable(settings: WorkerSettings, engines: Engines) -> Client:
    """Wait until Postgres and Temporal have all that a worker needs; return the client.

    Raises:
        CannotStart: one of them does not answer in time, refuses us, or lacks something.
    """
    deadline = time.monotonic() + settings.startup_timeout_seconds
    await _until(deadline, "Postgres", lambda: check_database(engines))
    connector: Connector = engines.steps.get_execution_options()[CONNECTOR]
    if connector.caution:
        _log.warning("the database's URL %s", connector.caution)
    return await _reach_temporal(deadline, settings)


async def _reach_temporal(deadline: float, settings: WorkerSettings) -> Client:
    identity = f"checkout-worker@{socket.gethostname()}-{os.getpid()}"
    try:
        where = place(connection_options(settings.temporal_api_key_file))
    except ConfigurationError as error:
        raise CannotStart(f"The Temporal settings are wrong: {error}") from error
    client = await _until(
        deadline,
        f"Temporal at {where}",
        lambda: connect(identity=identity, api_key_file=settings.temporal_api_key_file),
    )
    await _until(deadline, f"Temporal at {where}", lambda: _check_search_attributes(client))
    return client


async def _until(deadline: float, what: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Try until it works, with waits of 0.2 s doubling to 5 s, or until the deadline.

    After a refusal only for a few seconds: on a first start another process may be about to make role, database and
    schema.
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
            if _is_permanent(error):
                refused_until = refused_until or min(time.monotonic() + _GRACE_SECONDS, deadline)
                if time.monotonic() > refused_until:
                    advice = ADVICE if what.startswith("Temporal") else DATABASE_ADVICE
                    raise CannotStart(f"{what} refuses us: {reason}\n{advice}") from error
            elif time.monotonic() + wait > deadline:
                raise CannotStart(
                    f"{what} did not answer in time: {reason}\n"
                    "Is it running? `make up` or `docker compose up` starts everything; otherwise set "
                    "CHECKOUT_DATABASE_URL and TEMPORAL_ADDRESS."
                ) from error
            _log.info("waiting for %s: %s", what, reason, extra={"action": "waiting"})
        await asyncio.sleep(wait)
        wait = min(wait * 2, 5.0)


async def check_database(engines: Engines) -> None:
    """Refuse a pooler in transaction mode, and a database that lacks something the code relies on.

    Rights that the role has beyond its work are logged as warnings.

    Raises:
        CannotStart: with what is lacking.
    """
    if await pooling_of(engines.steps) is Pooling.TRANSACTION:
        raise CannotStart(LENDING_POOLER)
    if lacks := await schema.problems(*engines):
        raise CannotStart("\n  ".join(["The database lacks:", *lacks]) + f"\n{schema.REMEDY}")
    await rights.alarm(engines.steps)


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, CannotConnect):
        return error.is_refusal
    if is_refused(error):
        return True
    return (sqlstate(error) or "").startswith(_PERMANENT)


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
        raise  # not up yet, or down again
    if lacks := _lacking_attributes(client.namespace, known.custom_attributes):
        raise CannotStart("\n".join(lacks))


def _lacking_attributes(namespace: str, known: Mapping[str, IndexedValueType.ValueType]) -> list[str]:
    """List the search attributes that are missing or of another type, and the commands that fix that."""
    command = "temporal operator search-attribute"
    lines: list[str] = []
    others = [name for name in policies.SEARCH_ATTRIBUTES if known.get(name, _KEYWORD) != _KEYWORD]
    for name in others:
        kind = IndexedValueType.Name(known[name]).removeprefix("INDEXED_VALUE_TYPE_").title().replace("_", "")
        lines.append(f"Temporal's namespace {namespace} has search attribute {name} as {kind}; it has to be Keyword.")
    if others:
        names = " ".join(f"--name {name}" for name in others)
        lines += [
            "Another application uses it then, whose owner has to agree; or this service needs a namespace of its own.",
            f"Run: {command} remove --namespace {namespace} {names} --yes",
        ]
    missing = [name for name in policies.SEARCH_ATTRIBUTES if name not in known]
    if missing:
        lines.append(f"Temporal's namespace {namespace} lacks search attributes: {', '.join(missing)}.")
    if wanted := [name for name in policies.SEARCH_ATTRIBUTES if name in {*others, *missing}]:
        arguments = " ".join(f"--name {name} --type Keyword" for name in wanted)
        lines.append(f"Run: {command} create --namespace {namespace} {arguments}")
    return lines


def require_writable(settings: WorkerSettings) -> None:
    """Refuse a saga.log that cannot be written, or not read back, such as a device or a pipe.

    Raises:
        CannotStart: with what to set.
    """
    log_file = settings.log_file
    if settings.writes_log is WritesLog.NEVER:
        return
    try:
        if log_file == STDOUT:
            if sys.__stdout__ is None:
                raise OSError("standard output is closed")  # noqa: TRY301
            return
        if log_file.exists() and not (log_file.is_file() or log_file.is_dir()):
            raise OSError(f"{str(log_file)!a} is no file, and could not be read back")  # noqa: TRY301
        for path in (log_file, lock_of(log_file)):
            opened(path).close()
    except OSError as error:
        raise CannotStart(
            f"The log cannot be written: {error}.\nSet CHECKOUT_LOG_FILE to a file in a folder that exists, or to - for"
            " standard output; or CHECKOUT_WRITES_LOG=never where another worker writes it."
        ) from error


def forget_heartbeat(file: Path | None) -> None:
    """Delete the heartbeat of an earlier worker.

    Raises:
        CannotStart: the file cannot be written.
    """
    if file is None:
        return
    try:
        heartbeat.write(file)
        file.unlink()
    except OSError as error:
        raise CannotStart(
            f"The heartbeat cannot be written: {error}.\n"
            "Set CHECKOUT_HEARTBEAT_FILE to a file of this worker alone in a folder that exists, or to nothing."
        ) from error


async def check(settings: WorkerSettings) -> None:
    """Check all that a worker needs, as its start does; raise CannotStart with what Postgres and Temporal lack."""
    require_writable(settings)
    deadline = time.monotonic() + settings.startup_timeout_seconds
    engines = make_engines(settings, pool_size=1)
    try:
        results = await asyncio.gather(
            _until(deadline, "Postgres", lambda: check_database(engines)),
            _reach_temporal(deadline, settings),
            return_exceptions=True,
        )
    finally:
        await engines.dispose()
    if failures := [result for result in results if isinstance(result, BaseException)]:
        found = CannotStart("\n".join(map(str, failures)))
        raise next((failure for failure in failures if not isinstance(failure, CannotStart)), found)
