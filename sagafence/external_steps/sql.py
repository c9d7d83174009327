"""The rows of an external step: locked and read, and written."""

import hashlib
import json
import math
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.external_steps.state import Act, Next, Phase, Question, Seal, Step
from sagafence.fence import FenceKey
from sagafence.provider import Key, Provider

_COLUMNS = """
    s.fingerprint, s.key, s.undo_key, s.generation, s.request, s.phase, s.seal, s.permitted, s.doubts, s.result,
    s.result IS NOT NULL AS known, s.stands, s.reversed, s.refusal, s.question,
    CAST(extract(epoch FROM s.first_at) AS float8) AS first, CAST(extract(epoch FROM s.last_at) AS float8) AS last,
    CAST(extract(epoch FROM s.rev_first_at) AS float8) AS rev_first,
    CAST(extract(epoch FROM s.rev_last_at) AS float8) AS rev_last,
    CAST(extract(epoch FROM clock_timestamp()) AS float8) AS now
"""
# Without a target: a target would leave the other unique constraint to fail in whoever is second by an instant.
_OPEN = text(f"""
    INSERT INTO external_steps AS s (saga_id, step, provider, fingerprint, key, undo_key, request, phase)
    VALUES (:saga_id, :step, :provider, :fingerprint, :key, :undo_key, CAST(:request AS jsonb), 'intended')
    ON CONFLICT DO NOTHING
    RETURNING {_COLUMNS}
""")  # noqa: S608 - put together from our own constants
# It waits for the row's lock and then reads the row, and the clock, anew.
_LOCK = text(f"""
    UPDATE external_steps AS s SET updated_at = clock_timestamp() WHERE saga_id = :saga_id AND step = :step
    RETURNING {_COLUMNS}
""")  # noqa: S608 - put together from our own constants
# A statement of its own: the one that waited for the lock would see the calls as they were before.
_LIVE = text("SELECT n, kind FROM external_calls WHERE saga_id = :saga_id AND step = :step AND live")
_LAST_CHANGE = text("""
    SELECT CAST(extract(epoch FROM max(greatest(permitted_at, answered_at))) AS float8) FROM external_calls
    WHERE saga_id = :saga_id AND step = :step
""")
_SAVE = text("""
    UPDATE external_steps SET
        phase = :phase, seal = :seal, permitted = :permitted, doubts = :doubts, stands = :stands, reversed = :reversed,
        question = :question, generation = :generation, key = :key, undo_key = :undo_key,
        result = coalesce(CAST(:result AS jsonb), result), refusal = coalesce(CAST(:refusal AS jsonb), refusal),
        first_at = to_timestamp(CAST(:first AS float8)), last_at = to_timestamp(CAST(:last AS float8)),
        rev_first_at = to_timestamp(CAST(:rev_first AS float8)), rev_last_at = to_timestamp(CAST(:rev_last AS float8)),
        updated_at = clock_timestamp()
    WHERE saga_id = :saga_id AND step = :step
""")
_PERMIT = text("""
    INSERT INTO external_calls (saga_id, step, n, kind, live) VALUES (:saga_id, :step, :n, :kind, :live)
""")
_ANSWER = text("""
    UPDATE external_calls SET answered_at = clock_timestamp(), status = :status, replayed = :replayed
    WHERE saga_id = :saga_id AND step = :step AND n = :n
""")
_BURY = text("""
    UPDATE external_calls SET live = false
    WHERE saga_id = :saga_id AND step = :step AND live AND NOT n = ANY (CAST(:live AS integer[]))
""")
_KINDS = {Act.VOID: "void", Act.REVERSE: "reverse"}


@dataclass(frozen=True)
class Opened:
    """A step's row, locked."""

    step: Step
    key: Key
    fingerprint: str
    request: Any
    result: Any
    refusal: dict[str, Any] | None
    now: float


def key_of(key: FenceKey, generation: int) -> Key:
    """Derive the keys from business identity alone. A UUID, which every provider takes."""

    def derived(purpose: str) -> str:
        parts = json.dumps([key.saga_id, key.step, key.fingerprint, generation, purpose])
        return str(uuid.UUID(bytes=hashlib.sha256(parts.encode()).digest()[:16], version=5))

    return Key(derived("do"), derived("undo"))


def as_jsonb(value: Any) -> str:
    """Write a value as JSON that Postgres can store: it takes no NUL and no half of a surrogate pair."""
    return json.dumps(_storable(value), allow_nan=False)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(part) for part in value]
    return value


async def open_row(connection: AsyncConnection, key: FenceKey, provider: Provider, request: str) -> Opened:
    """Lock the step's row, which is made where there is none.

    Raises:
        IdempotencyConflict: the row belongs to another request.
    """
    keys = key_of(key, 0)
    made = {"provider": provider.name, "key": keys, "undo_key": keys.undo, "request": request}
    made["key"] = str(keys)
    row = (await connection.execute(_OPEN, {**key.parameters(), **made})).one_or_none()
    if row is None:
        row = (await connection.execute(_LOCK, _identity(key))).one()
    return await _opened(connection, key, row)


async def lock_row(connection: AsyncConnection, key: FenceKey) -> Opened | None:
    """Lock the step's row, if there is one."""
    row = (await connection.execute(_LOCK, _identity(key))).one_or_none()
    return None if row is None else await _opened(connection, key, row)


async def _opened(connection: AsyncConnection, key: FenceKey, row: Row[Any]) -> Opened:
    if row.fingerprint != key.fingerprint:
        raise key.conflict(f"{key.saga_id} already belongs to a request with other content; choose another id")
    live = (await connection.execute(_LIVE, _identity(key))).all()
    step = Step(
        phase=Phase(row.phase),
        permitted=row.permitted,
        live=frozenset(call.n for call in live if call.kind != "reverse"),
        first=row.first,
        last=row.last,
        seal=Seal(row.seal),
        doubts=row.doubts,
        known=row.known,
        stands=row.stands,
        reversing=frozenset(call.n for call in live if call.kind == "reverse"),
        reversed=row.reversed,
        rev_first=row.rev_first,
        rev_last=row.rev_last,
        question=Question(row.question) if row.question else None,
        generation=row.generation,
    )
    return Opened(step, Key(row.key, row.undo_key), row.fingerprint, row.request, row.result, row.refusal, row.now)


@dataclass(frozen=True)
class Evidence:
    """What a call heard, for the row of the call."""

    n: int
    status: str
    replayed: bool = False


async def save(  # noqa: PLR0913 - a row has so many parts
    connection: AsyncConnection,
    key: FenceKey,
    opened: Opened,
    step: Step,
    *,
    permits: Next | None = None,
    forward: bool = False,
    evidence: Evidence | None = None,
    result: str | None = None,
    refusal: str | None = None,
) -> None:
    """Write what a rule has made of the step, a call that it permits, and what an earlier one heard."""
    identity = _identity(key)
    if permits is not None and permits.n:
        kind = _KINDS.get(permits.act, "do" if forward else "claim")
        is_live = permits.n in step.live | step.reversing
        await connection.execute(_PERMIT, {**identity, "n": permits.n, "kind": kind, "live": is_live})
    if evidence is not None:
        heard = {"n": evidence.n, "status": evidence.status, "replayed": evidence.replayed}
        await connection.execute(_ANSWER, {**identity, **heard})
    if (opened.step.live | opened.step.reversing) - step.live - step.reversing:
        await connection.execute(_BURY, {**identity, "live": sorted(step.live | step.reversing)})
    if step == opened.step and result is None and refusal is None:
        return
    keys = key_of(key, step.generation) if step.generation != opened.step.generation else opened.key
    values = {name: value for name, value in step._asdict().items() if name not in {"live", "reversing", "known"}}
    written = {**identity, **values, "key": str(keys), "undo_key": keys.undo, "result": result, "refusal": refusal}
    await connection.execute(_SAVE, written)


async def last_change(connection: AsyncConnection, key: FenceKey) -> float:
    """Give the instant at which a call was last permitted or answered; minus infinity without one."""
    found: float | None = (await connection.execute(_LAST_CHANGE, _identity(key))).scalar_one()
    return -math.inf if found is None else found


def _identity(key: FenceKey) -> dict[str, Any]:
    return {"saga_id": key.saga_id, "step": key.step}
