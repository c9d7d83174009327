"""The folder in memory: there while its session lives, and gone soon after, however that ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.stack import ROOT
from tests import memory
from tests.memory import PREFIX, folder_in_memory

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.memory import folder_in_memory
with folder_in_memory(Path("nowhere"), Path(sys.argv[1])) as folder:
    (folder / "data").write_text("left behind")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_gone_after_the_block(tmp_path: Path) -> None:
    with folder_in_memory(Path("nowhere"), tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o755

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_session_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    left = list(tmp_path.iterdir())

    with folder_in_memory(Path("nowhere"), tmp_path) as first, folder_in_memory(Path("nowhere"), tmp_path) as second:
        found = set(tmp_path.iterdir())

    assert killed.returncode == -signal.SIGKILL
    assert [file.name[: len(PREFIX)] for file in left] == [PREFIX]
    assert found == {first, second}
    assert not found & set(left)


def test_the_disk_is_used_where_memory_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_in_memory(tmp_path, tmp_path / "no-such") as missing:
        pass
    monkeypatch.setattr(memory, "ROOM_BYTES", sys.maxsize)
    with folder_in_memory(tmp_path, tmp_path) as full:
        pass

    assert missing == full == tmp_path
