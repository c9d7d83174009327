"""docs/your-own-saga.md, run as a stranger would: its blocks in a folder that knows the library by its name alone."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError

import sagafence
from devstack.stack import ROOT
from sagafence.devservers.ports import free_port, port_answers
from tests.conftest import Database

_DOCUMENT = ROOT / "docs" / "your-own-saga.md"
_FILES = ROOT / "examples" / "trip"
_NAMES = (
    "trip.sql",
    "trip_steps.py",
    "trip_story.py",
    "trip_worker.py",
    "airline.py",
    "airline_server.py",
    "pytest.ini",
    "test_trip.py",
)
# What else is installed here must not take part.
_REJECTED = "SELECT count(*) FROM external_calls WHERE status LIKE 'rejected%'"
_PLUGINS = ("pytest_asyncio.plugin", "xdist.plugin", "sagafence_pytest")


def blocks() -> dict[str, str]:
    """Return the blocks of the tutorial, by the file that is named last before each."""
    document = _DOCUMENT.read_text(encoding="utf-8")
    found = re.findall(r"`([\w.]+)`[^`]*\n```(?:python|sql|ini)\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(found) == len(re.findall(r"^```(?:python|sql|ini)$", document, re.MULTILINE))
    return dict(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, block in blocks().items():
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def alone() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return env | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_pytest(folder: Path, *arguments: str, timeout: int) -> str:
    plugins = [argument for name in _PLUGINS for argument in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=alone(), capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_blocks_of_the_tutorial_are_the_files_of_the_example() -> None:
    assert blocks() == {name: (_FILES / name).read_text(encoding="utf-8") for name in _NAMES}


def test_what_the_librarys_readme_shows_is_code_of_the_example() -> None:
    readme = (ROOT / "sagafence" / "README.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^## What it looks like\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)

    shown = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    code = "\n".join((_FILES / name).read_text(encoding="utf-8") for name in ("trip_steps.py", "trip_story.py"))
    assert len(shown) == 2
    assert [line for block in shown for line in block.splitlines() if line not in code.splitlines()] == []


def test_the_tutorials_first_tests_pass_in_a_folder_of_their_own(folder: Path) -> None:
    matrix = "test_whatever_goes_wrong_a_trip_is_booked_whole_or_not_at_all"
    tests = ["test_a_trip_is_booked", "test_a_trip_that_is_refused_leaves_nothing"]
    cases = ["plain", "seat-provider-acts-then-500", "invoice-do-gives-up"]
    chosen = [*tests, *(f"{matrix}[{case}]" for case in cases)]

    assert "6 passed" in run_pytest(folder, *(f"test_trip.py::{name}" for name in chosen), timeout=110)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_tutorials_whole_matrix_is_green_and_as_large_as_it_says(folder: Path) -> None:
    [said] = re.findall(r"^(\d+) passed in", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)

    assert f"{said} passed" in run_pytest(folder, "-n", "3", timeout=850)


def test_a_broken_promise_is_found_by_the_case_that_the_tutorial_names(folder: Path) -> None:
    steps = folder / "trip_steps.py"
    broken = steps.read_text(encoding="utf-8").replace('"Idempotency-Key": key', '"Idempotency-Key": uuid.uuid4().hex')
    steps.write_text(f"import uuid\n{broken}", encoding="utf-8")

    with pytest.raises(AssertionError, match=r"seats \+2"):
        run_pytest(folder, "-k", "seat-provider-acts-then-500 and not for-good", timeout=110)


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.1)


def causes(error: BaseException | None) -> str:
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__
    return "; ".join(said)


async def test_the_tutorials_walk_ends_as_it_says(folder: Path, client: Client, library_database: Database) -> None:
    url = library_database.admin_url
    await library_database.run(sagafence.ddl())
    await library_database.run((folder / "trip.sql").read_text(encoding="utf-8"))
    port = free_port()
    airline_url = f"http://127.0.0.1:{port}"
    server = folder / "airline_server.py"
    server.write_text(server.read_text(encoding="utf-8").replace("8070", str(port)), encoding="utf-8")
    env = alone() | {
        "DATABASE_URL": url.replace("postgresql:", "postgresql+asyncpg:"),
        "TEMPORAL_ADDRESS": client.service_client.config.target_host,
        "AIRLINE_URL": airline_url,
    }

    async def start(hotel: str) -> WorkflowHandle[Any, Any]:
        trip_id = f"trip-{uuid.uuid4()}"
        trip = {"trip_id": trip_id, "hotel": hotel, "flight": "PX1"}
        return await client.start_workflow("BookTrip", trip, id=trip_id, task_queue="trips")

    airline = await asyncio.create_subprocess_exec(sys.executable, server.name, cwd=folder, env=env)
    worker = await asyncio.create_subprocess_exec(sys.executable, "trip_worker.py", cwd=folder, env=env)
    try:
        await until(lambda: port_answers(port))
        booked = await start("Seaside")
        assert await booked.result() == ["Seaside", "seat 1", f"invoice/{booked.id}"]
        refused = await start("Full House")
        with pytest.raises(WorkflowFailureError) as failure:
            await refused.result()
        assert "no room is free in Full House" in str(failure.value.cause)

        airline.terminate()
        await airline.wait()
        cancelled = await start("Seaside")
        while not await library_database.value(_REJECTED):
            await asyncio.sleep(0.1)
        said = {"step": "seat", "verdict": "nevr", "who": "kim", "why": "seen"}
        with pytest.raises(WorkflowUpdateFailedError) as wrong:
            await cancelled.execute_update("resolve", said)
        assert "'nevr' is no verdict: say one of happened, never, undone_by_hand" in causes(wrong.value)
        await cancelled.execute_update("cancel", "changed their mind")
        with pytest.raises(WorkflowFailureError) as failure:
            await cancelled.result()
        assert getattr(failure.value.cause, "type", "") == "SagaCancelled"
    finally:
        worker.terminate()
        if airline.returncode is None:
            airline.terminate()
        await worker.wait()
        await airline.wait()

    rows = await library_database.fetch("SELECT free_rooms FROM hotels WHERE hotel = 'Seaside'")
    assert [row["free_rooms"] for row in rows] == [99]
