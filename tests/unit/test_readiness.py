"""What a start waits for, what it gives up at once, and what it goes on without; no server is needed."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

import worker
from adapters import readiness, schedules
from adapters.config import WorkerSettings
from sagafence import CannotConnect


def failing(*failures: Exception) -> Any:
    """Give an attempt that fails so, and then works."""
    left: Iterator[Exception] = iter(failures)

    async def attempt() -> str:
        for failure in left:
            raise failure
        return "usable"

    return attempt


REFUSALS = [
    readiness.CannotStart("the database lacks table orders"),
    CannotConnect("no such role", sqlstate="28000", is_refusal=True),
    RPCError("Unauthenticated", RPCStatusCode.UNAUTHENTICATED, b""),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
async def test_a_refusal_that_is_over_in_a_moment_ends_no_start(refusal: Exception) -> None:
    # As where the database is being made by somebody else who starts at the same time.
    usable = await readiness._until(time.monotonic() + 60, "Postgres", failing(refusal, refusal))

    assert usable == "usable"


@pytest.mark.parametrize(
    ("what", "refusal", "advice"),
    [
        ("Postgres", REFUSALS[1], "CHECKOUT_DATABASE_URL"),
        ("Temporal at h:7233", REFUSALS[2], "TEMPORAL_API_KEY"),
    ],
)
async def test_a_refusal_that_lasts_is_reported_with_what_to_check(
    what: str, refusal: Exception, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_GRACE_SECONDS", 0)

    with pytest.raises(readiness.CannotStart, match=advice):
        await readiness._until(time.monotonic() + 3_600, what, failing(*[refusal] * 9))


class Forbidding:
    """A Temporal that does not let us see its search attributes."""

    namespace = "shop"

    def __init__(self, status: RPCStatusCode) -> None:
        self._status = status

    @property
    def operator_service(self) -> "Forbidding":
        return self

    async def list_search_attributes(self, _request: Any) -> None:
        raise RPCError("no", self._status, b"")


@pytest.mark.parametrize("status", [RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED])
async def test_who_may_not_see_the_search_attributes_starts_all_the_same(
    status: RPCStatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = Forbidding(status)

    await readiness._check_search_attributes(client)

    assert "cannot see whether" in caplog.text


async def test_who_may_not_make_schedules_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*_: Any) -> None:
        raise RPCError("no right to schedules", RPCStatusCode.PERMISSION_DENIED, b"")

    monkeypatch.setattr(schedules, "ensure", refuse)
    client: Any = None

    await worker._ensure_schedules(client, WorkerSettings())

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no right to schedules" in caplog.text


def test_a_lock_that_cannot_be_had_is_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "saga.log.lock").mkdir()

    with pytest.raises(readiness.CannotStart, match="The log cannot be written"):
        readiness.require_writable(WorkerSettings(log_file=tmp_path / "saga.log"))
