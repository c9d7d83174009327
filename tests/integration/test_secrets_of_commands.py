"""Whatever is wrong with their secrets, worker.py and starter.py tell nothing of them; nor do their arguments."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.canary import CANARY
from tests.integration.commands import DEADLINE_SECONDS, Commands

Environment = dict[str, str]


def _file(folder: Path, content: str) -> str:
    file = folder / f"{CANARY}-{len(list(folder.iterdir()))}"
    file.write_bytes(content.encode(errors="surrogateescape"))
    return str(file)


def _logs(folder: Path) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in folder.glob("*.log")]


def _profile(folder: Path, content: str) -> Environment:
    return {"TEMPORAL_CONFIG_FILE": _file(folder, f"[profile.default]\n{content}\n")}


_URL = f"postgresql://checkout:{CANARY}"
# One of each source. What is wrong, and whether the starter meets it too, which is never told where the database is.
WRONG: dict[str, tuple[Callable[[Path], Environment], bool]] = {
    "a profile of another encoding": (lambda folder: _profile(folder, f'api_key = "{CANARY}\udcff"'), True),
    "a key that is none": (
        lambda _: {"TEMPORAL_TLS_CLIENT_KEY_DATA": CANARY, "TEMPORAL_TLS_CLIENT_CERT_DATA": CANARY},
        True,
    ),
    "a key in place of its file": (lambda _: {"CHECKOUT_TEMPORAL_API_KEY_FILE": CANARY}, True),
    "an address with credentials": (lambda _: {"TEMPORAL_ADDRESS": f"u:{CANARY}@127.0.0.1:x y"}, True),
    "a password with odd characters": (lambda _: {"CHECKOUT_DATABASE_URL": f"{_URL}@{CANARY}?x/@h/d"}, False),
    "a password for nobody": (lambda _: {"CHECKOUT_DATABASE_URL": f"postgresql://u:{CANARY}@127.0.0.1:1/d"}, False),
    "a url's file with none": (lambda folder: {"CHECKOUT_DATABASE_URL_FILE": _file(folder, f"{_URL}@h")}, False),
    "a setting that does not exist": (lambda _: {"CHECKOUT_DATABASE_PASSWORD": CANARY}, True),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_wrong_secret_is_in_no_output_and_no_log(kind: str, commands: Commands, tmp_path: Path) -> None:
    make, is_met_by_starter = WRONG[kind]
    folder = tmp_path / "secrets"
    folder.mkdir()
    # As long as the grace for what a person has to mend, and no longer.
    environment = make(folder) | {"CHECKOUT_STARTUP_TIMEOUT_SECONDS": "1", "CHECKOUT_LOG_LEVEL": "DEBUG"}

    worker = commands.worker(**environment)
    checking = commands.worker(arguments=("--check",), **environment)
    asked = await asyncio.to_thread(lambda: commands.here("list", **environment))

    statuses = [await asyncio.to_thread(started.wait, DEADLINE_SECONDS) for started in (worker, checking)]
    output = [worker.tail(500), checking.tail(500), asked.out + asked.err]
    assert all(status in {1, 2} for status in statuses), output
    assert not is_met_by_starter or asked.code in {1, 2}
    assert [text for text in output if CANARY in text or "Traceback" in text] == []
    assert all(output[:2]), "nothing was said at all"


async def test_a_worker_at_work_keeps_its_secrets_to_itself(commands: Commands, tmp_path: Path) -> None:
    # The embedded servers let everybody in, whatever they bring along.
    url = commands.environment["CHECKOUT_DATABASE_URL"].replace("checkout@", f"checkout:{CANARY}@")
    environment = {"TEMPORAL_API_KEY": CANARY, "TEMPORAL_TLS": "false", "CHECKOUT_LOG_LEVEL": "DEBUG"}

    worker = await asyncio.to_thread(lambda: commands.ready_worker(CHECKOUT_DATABASE_URL=url, **environment))
    bought = await asyncio.to_thread(
        lambda: commands.here("start", "--customer", "alice", "--line", "tea-mug:1", **environment)
    )
    process = psutil.Process(worker.pid)
    arguments = [each.cmdline() for each in (process, *process.children(recursive=True))]
    await asyncio.to_thread(worker.stop)

    assert bought.code == 0, bought.err
    output = [*_logs(tmp_path), bought.out, bought.err, str(arguments)]
    assert any("ready: task queue" in text for text in output)
    assert [text for text in output if CANARY in text] == []
