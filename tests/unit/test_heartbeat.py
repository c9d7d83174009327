"""A worker's sign of life, and the probe that a container is judged by."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters import heartbeat
from adapters.readiness import CannotStart, forget_heartbeat
from devstack.stack import ROOT


def probe(file: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adapters.heartbeat", *arguments],
        cwd=ROOT,
        env={heartbeat.FILE: str(file)},
        capture_output=True,
        text=True,
        check=False,
    )


def names(folder: Path) -> list[str]:
    return [found.name for found in folder.iterdir()]


async def test_a_beat_is_written_while_there_is_work_and_not_beyond(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    is_at_work, asked = True, 0

    def look() -> bool:
        nonlocal asked
        asked += 1
        return is_at_work

    beating = asyncio.create_task(heartbeat.beat(file, look, every_seconds=0.01))
    async with asyncio.timeout(10):
        while heartbeat.problem(file):
            await asyncio.sleep(0.01)

        is_at_work, asked = False, 0
        last = file.read_text()
        while asked < 5:
            await asyncio.sleep(0.01)
        assert file.read_text() == last

        is_at_work = True
        while file.read_text() == last:
            await asyncio.sleep(0.01)
    beating.cancel()

    assert names(tmp_path) == ["heartbeat"]


async def test_a_heartbeat_that_cannot_be_written_is_logged_once_and_ends_no_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beating = asyncio.create_task(heartbeat.beat(tmp_path / "no" / "folder", lambda: True, every_seconds=0.001))
    async with asyncio.timeout(10):
        while not caplog.records:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # for a second message, which must not come

    assert not beating.done()
    beating.cancel()
    [logged] = caplog.messages
    assert logged.startswith("CHECKOUT_HEARTBEAT_FILE cannot be written")


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        (None, "no worker is at work yet"),
        ("", "cannot be read"),
        ("soon", "cannot be read"),
        (f"{time.monotonic() + 1_000_000}", "earlier start of this machine"),
        ("nan", "cannot be read"),
    ],
    ids=["missing", "empty", "torn", "another clock", "no number"],
)
def test_what_is_no_heartbeat_of_today_is_unhealthy(content: str | None, logged: str, tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    if content is not None:
        file.write_text(content)

    assert logged in heartbeat.problem(file)
    probed = probe(file)
    assert probed.returncode == 1
    assert logged in probed.stderr


def test_the_probe_distinguishes_young_from_old(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    heartbeat.write(file, f"{time.monotonic() - 60:.3f}\n")

    old, young = probe(file), probe(file, "3600")

    assert (old.returncode, young.returncode) == (1, 0), old.stderr + young.stderr
    assert "the last heartbeat was 6" in old.stderr
    assert young.stdout + young.stderr == ""


def test_a_probe_without_a_file_or_with_a_wrong_argument_is_no_success(tmp_path: Path) -> None:
    heartbeat.write(tmp_path / "heartbeat")

    assert "is not set" in probe("").stderr
    assert probe("").returncode == 1
    for wrong in ("soon", "nan", "inf"):  # no beat is older than the last two
        assert probe(tmp_path / "heartbeat", wrong).returncode == 1


def test_a_probe_imports_nothing_that_takes_long() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import adapters.heartbeat, sys; print(*{n.split('.')[0] for n in sys.modules})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert {"temporalio", "sqlalchemy", "pydantic", "asyncpg"}.isdisjoint(loaded)


def test_what_an_earlier_worker_has_left_is_no_sign_of_this_one(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    heartbeat.write(file)

    forget_heartbeat(file)

    assert heartbeat.problem(file)
    assert names(tmp_path) == []
    forget_heartbeat(None)
    with pytest.raises(CannotStart, match="CHECKOUT_HEARTBEAT_FILE"):
        forget_heartbeat(tmp_path / "no" / "folder")
