"""What the code relies on in the database: the check at a worker's start, and the watch after it.

schema.txt beside this file is a recording of a database on which setup.sql has just been run, as role `checkout` sees
it (`python -m tests.record_schema`); a test compares the two. What a database has beyond that is fine: a newer release
adds first and uses later.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from adapters.polled_state import PolledState
from domain import policies
from sagafence import ActivityPolicy

OLDEST_SERVER = 15
POLL_SECONDS = 60.0
RECORDING = Path(__file__).with_name("schema.txt")
_REPEAT_AFTER_POLLS = 10
_VERSION_TABLE = "schema_version"
_WHOLE = frozenset({"table", "column", "trigger", "function"})
"""The kinds of facts that others depend on."""

_log = logging.getLogger("checkout.schema")

REMEDY = """Run setup.sql on it as its owner: psql -d checkout -f setup.sql
What is still missing then was changed by hand: setup.sql puts back no constraint, default or column that was dropped,
nor a setting that ALTER DATABASE or ALTER ROLE ... IN DATABASE has put before the role's. Change it back to what
setup.sql has."""


class Fact(NamedTuple):
    """One fact of the catalogue about a table, `table.column`, `table.trigger`, function and so on."""

    kind: str
    subject: str
    value: str = ""


_ENTRY = Fact("right", "schema public", "USAGE")

# As the connected role sees it. Definitions are compared only as far as the code relies on them: a newer release
# may let a CHECK accept more, or an index hold more rows, unless that makes more of them unique. Subjects are text: a
# `name` is cut off after 63 bytes.
_CATALOGUE = text(r"""
    WITH tables AS (
        SELECT oid, CAST(relname AS text) AS name FROM pg_class
         WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p')
    ), columns AS (
        SELECT a.*, t.name, t.name || '.' || a.attname AS subject
          FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    ), functions AS (
        SELECT p.*, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS subject
          FROM pg_proc p WHERE p.pronamespace = to_regnamespace('public') AND p.prokind = 'f'
    )
    SELECT 'table' AS kind, name AS subject,
           CASE WHEN row_security_active(oid) THEN 'hides rows by row security' ELSE '' END AS value FROM tables
    UNION ALL
    SELECT 'name', name, CASE WHEN to_regclass(quote_ident(name)) = oid THEN 'means the one in public'
                              ELSE current_setting('search_path') END FROM tables
    UNION ALL
    SELECT 'column', subject, format_type(atttypid, atttypmod) FROM columns
    UNION ALL
    SELECT 'not null', subject, '' FROM columns WHERE attnotnull
    UNION ALL
    SELECT 'default', subject, '' FROM columns WHERE atthasdef OR attidentity <> ''
    UNION ALL
    SELECT 'constraint', t.name || '.' || c.conname,
           CASE WHEN c.contype = 'c' THEN 'CHECK'
                ELSE regexp_replace(pg_get_constraintdef(c.oid), 'public\.|( NOT VALID$)', '', 'g') END
           || CASE WHEN pg_get_constraintdef(c.oid) LIKE '%NOT ENFORCED' AND c.contype = 'c' THEN ' NOT ENFORCED'
                   WHEN EXISTS (SELECT FROM pg_trigger g WHERE g.tgconstraint = c.oid AND g.tgenabled IN ('D', 'R'))
                   THEN ', disabled' ELSE '' END
      FROM tables t JOIN pg_constraint c ON c.conrelid = t.oid AND c.contype <> 'n'
    UNION ALL
    SELECT 'index', t.name || '.' || c.relname,
           CASE WHEN NOT (i.indisvalid AND i.indisready) THEN 'invalid ' ELSE '' END
           || CASE WHEN i.indisunique THEN 'unique ' ELSE '' END
           || '(' || (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, true), ', ' ORDER BY n)
                        FROM generate_series(1, i.indnkeyatts) AS n) || ')'
           || CASE WHEN i.indisunique AND i.indpred IS NOT NULL
                   THEN ' WHERE ' || pg_get_expr(i.indpred, i.indrelid) ELSE '' END
      FROM tables t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
    UNION ALL
    SELECT 'trigger', t.name || '.' || g.tgname,
           regexp_replace(pg_get_triggerdef(g.oid), '^CREATE (CONSTRAINT )?TRIGGER \S+ | ON \S+| EXECUTE .*$', '', 'g')
           || ' EXECUTE ' || p.pronamespace::regnamespace || '.' || p.proname
      FROM tables t JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal JOIN pg_proc p ON p.oid = g.tgfoid
    UNION ALL
    SELECT 'enabled', t.name || '.' || g.tgname, ''
      FROM tables t JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal
     WHERE g.tgenabled = 'A' OR (g.tgenabled = 'O' AND current_setting('session_replication_role') <> 'replica')
    UNION ALL
    SELECT 'function', subject, pg_get_function_result(oid) FROM functions
    UNION ALL
    SELECT 'body', subject, md5(replace(prosrc, chr(13), '') || coalesce(array_to_string(proconfig, ','), '')
                                || CASE WHEN prosecdef THEN ' as its owner' ELSE '' END)
      FROM functions
    UNION ALL
    SELECT 'right', name, privilege FROM tables, unnest(ARRAY['SELECT', 'INSERT']) AS privilege
     WHERE has_table_privilege(oid, privilege)
    UNION ALL
    SELECT 'right', subject, 'UPDATE' FROM columns WHERE has_column_privilege(attrelid, attnum, 'UPDATE')
    UNION ALL
    SELECT 'right', subject, 'INSERT' FROM columns
     WHERE has_column_privilege(attrelid, attnum, 'INSERT') AND NOT has_table_privilege(attrelid, 'INSERT')
    UNION ALL
    SELECT 'right', subject, 'EXECUTE' FROM functions WHERE has_function_privilege(oid, 'EXECUTE')
    UNION ALL
    SELECT 'right', subject, 'USAGE of its sequence' FROM columns
     WHERE attidentity <> '' AND CASE WHEN has_schema_privilege('public', 'USAGE') THEN has_sequence_privilege(
               pg_get_serial_sequence(format('public.%I', name), attname), 'USAGE') ELSE true END
    UNION ALL
    SELECT 'right', 'schema public', 'USAGE' WHERE has_schema_privilege('public', 'USAGE')
""")
_VERSION = text("SELECT CAST(version AS text) FROM public.schema_version")
_SETTINGS = text("""
    SELECT name, CAST(setting AS bigint) AS setting FROM pg_settings
     WHERE name IN ('lock_timeout', 'statement_timeout', 'transaction_timeout', 'server_version_num',
                    'idle_in_transaction_session_timeout', 'client_connection_check_interval')
""")


@cache
def expected() -> frozenset[Fact]:
    """Return the facts of this release's setup.sql, by its recording."""
    lines = RECORDING.read_text(encoding="utf-8").splitlines()
    return frozenset(Fact(*line.split("\t")) for line in lines)


def tables() -> frozenset[str]:
    """Return the names of setup.sql's tables."""
    return frozenset(fact.subject for fact in expected() if fact.kind == "table")


async def found(connection: AsyncConnection) -> frozenset[Fact]:
    """Read the facts of the database, as the connected role sees it."""
    facts = {Fact(*row) for row in await connection.execute(_CATALOGUE)}
    if {Fact("table", _VERSION_TABLE, ""), Fact("right", _VERSION_TABLE, "SELECT"), _ENTRY} <= facts:
        facts |= {Fact("version", "schema", value) for value in (await connection.execute(_VERSION)).scalars()}
    return frozenset(facts)


def missing(found: frozenset[Fact]) -> list[str]:
    """List what the code relies on and the database lacks.

    A missing table, column, trigger or function is one line, without what depends on it. Function bodies are compared
    where the versions are equal: of an older database the version is listed, and a newer one may have better bodies.
    """
    version, here = _version(expected()), _version(found)
    lacks = [fact for fact in expected() - found if fact.kind != "version" and (fact.kind != "body" or here == version)]
    has = {(fact.kind, fact.subject): fact.value for fact in found if fact.kind != "right"}
    gone = {fact.subject for fact in lacks if fact.kind in _WHOLE and (fact.kind, fact.subject) not in has}
    lines = []
    if here < version and _ENTRY not in lacks:  # without that right no version can be read
        lines.append(f"schema version {version} (it has {f'version {here}' if here else 'none'})")
    # Without the right to the schema no name in it means anything, whatever the search_path.
    strayed = {
        fact.subject: has["name", fact.subject]
        for fact in lacks
        if fact.kind == "name" and fact.subject not in gone and _ENTRY not in lacks
    }
    for fact in sorted(lacks):
        is_implied = fact.subject.partition(".")[0] in gone - {fact.subject} or (
            fact.subject in gone and fact.kind not in _WHOLE
        )
        if fact.kind != "name" and not is_implied:
            lines.append(_description(fact, has.get((fact.kind, fact.subject))))
    if strayed:
        [path] = set(strayed.values())
        lines.append(f"a search_path by which {', '.join(sorted(strayed))} are those in public (it is {path})")
    return lines + _demanded(found, is_newer=here > version)


def unfit(settings: Mapping[str, int], of: str) -> list[str]:
    """List the timeouts, in milliseconds, that are not nested as docs/architecture.md has them."""
    steps = min(_milliseconds(each) for each in (policies.RESERVE, policies.PAY, policies.SHIP))
    undos = min(_milliseconds(each) for each in (policies.UNDO, policies.RECORD, policies.BATCH))
    statement = settings["statement_timeout"]
    attempt = {"sweep": _milliseconds(policies.MAINTENANCE), "audit": _milliseconds(policies.AUDIT)}.get(of)
    ranges = {
        "statement_timeout": (attempt // 2 if attempt else 1, attempt or steps),
        "lock_timeout": (1, statement or attempt or steps),
        # A statement_timeout that is too long, or none, has a line of its own.
        "transaction_timeout": (statement if 0 < statement < (attempt or steps) else 1, attempt or undos),
        "idle_in_transaction_session_timeout": (1, undos),
        "client_connection_check_interval": (1, undos),
    }
    return [
        f"{name} from {low} to {high - 1} ms for the {of} (it is {settings[name]})"
        for name, (low, high) in ranges.items()
        if name in settings and not low <= settings[name] < high
    ]


async def problems(steps: AsyncEngine, sweep: AsyncEngine, audit: AsyncEngine) -> list[str]:
    """List what the database lacks, as each kind of connection sees it."""
    lines: dict[str, None] = {}
    for engine, of in ((steps, "steps"), (sweep, "sweep"), (audit, "audit")):
        lines |= dict.fromkeys(await problems_of(engine, of))
    return list(lines)


async def problems_of(engine: AsyncEngine, of: str) -> list[str]:
    """List what the database lacks, as one kind of connection sees it."""
    async with engine.connect() as connection:
        settings: dict[str, int] = {row.name: row.setting for row in await connection.execute(_SETTINGS)}
        if (server := settings["server_version_num"] // 10_000) < OLDEST_SERVER:
            return [f"PostgreSQL {OLDEST_SERVER} or newer (it is {server})"]
        seen = await found(connection)
    if not any(fact.kind == "table" for fact in expected() & seen):
        return ["any of our tables: setup.sql has not been run on it"]
    return [*missing(seen), *unfit(settings, of)]


async def watch(engine: AsyncEngine) -> None:
    """Log an error where the database lacks something since the start, and again while that lasts, until cancelled.

    A guard that is gone makes no statement fail. The worker goes on: an order whose statement fails waits, and the
    orders of a database without a guard are no safer with no worker.
    """
    lacking = PolledState[list[str]]([], repeat_every=_REPEAT_AFTER_POLLS)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            lacks = await problems_of(engine, "steps")
        except (SQLAlchemyError, OSError, TimeoutError):
            continue  # an outage is logged by the steps that run into it
        if not lacking.update(lacks, is_alarm=bool(lacks)):
            continue
        if lacks:
            _log.error(
                "the database lacks %s; see docs/operations.md, Running setup.sql again",
                ", ".join(lacks),
                extra={"action": "schema_lacking"},
            )
        else:
            _log.info("the database has all that the code relies on again", extra={"action": "schema_whole"})


def _milliseconds(policy: ActivityPolicy) -> int:
    return round(policy.start_to_close.total_seconds() * 1000)


def _version(facts: Iterable[Fact]) -> int:
    return max((int(fact.value) for fact in facts if fact.kind == "version"), default=0)


def _description(fact: Fact, other: str | None) -> str:
    match fact.kind:
        case "right":
            return f"right {fact.value} on {fact.subject}"
        case "enabled":
            return f"trigger {fact.subject} enabled"
        case "body":
            return f"function {fact.subject} as setup.sql has it"
    return f"{fact.kind} {fact.subject}" + f" {fact.value}".rstrip() + (f" (it is {other})" if other else "")


def _demanded(found: frozenset[Fact], *, is_newer: bool) -> list[str]:
    """List the columns that take no null and that this code leaves out or writes null into: its inserts would fail.

    A newer release may forbid null in a column of ours: it knows what the previous one writes.
    """
    facts: dict[str, set[str]] = {kind: set() for kind in ("column", "not null", "default")}
    for fact in found:
        facts.setdefault(fact.kind, set()).add(fact.subject)
    known = {fact.subject for fact in expected() if fact.kind == "column"}
    # A function of the owner's writes order_events for us.
    filled = {fact.subject.partition(".")[0] for fact in expected() if fact[0::2] == ("right", "INSERT")}
    filled.add("order_events")
    strange = facts["not null"] - facts["default"] - known
    tightened = (facts["not null"] & known) - {fact.subject for fact in expected() if fact.kind == "not null"}
    return [
        *(f"a default for column {name}" for name in sorted(strange) if name.partition(".")[0] in filled),
        *(f"null in column {name}" for name in sorted(tightened) if not is_newer and name.partition(".")[0] in filled),
    ]
