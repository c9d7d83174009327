"""The Restate server from its npm package, as a child process on loopback."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders.contender import Absent
from devstack.stack import ROOT
from sagafence.devservers.ports import free_port, port_answers
from sagafence.devservers.process import ChildProcess

_INSTALLED = Path(sys.prefix) / "restate"
_START_SECONDS = 60.0
_INSTALL_SECONDS = 300.0
_MACHINES = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class RestateServer:
    """One Restate node. Orders are sent to the port `ingress`; services and journals belong to `admin`."""

    pid: int
    ingress: int
    admin: int


@contextmanager
def running(folder: Path) -> Iterator[RestateServer]:
    """Run one node with its data in `folder` inside the block, with its own defaults except for `_settings`.

    Raises:
        Absent: its package cannot be had here.
        ServerFailed: it did not start.
    """
    ingress, admin = free_port(), free_port()
    child = ChildProcess(
        "Restate",
        [str(_program()), "--no-logo"],
        log=folder / "restate.log",
        env=_environment() | _settings(folder, ingress, admin),
        cwd=folder,
    )
    child.start()
    child.until(lambda: port_answers(ingress) and port_answers(admin), _START_SECONDS)
    try:
        yield RestateServer(child.pid, ingress, admin)
    finally:
        child.stop()


def version() -> str:
    """Return the server's version."""
    done = subprocess.run([str(_program()), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def _settings(folder: Path, ingress: int, admin: int) -> dict[str, str]:
    return {
        "RESTATE_NODE_NAME": "bench",
        "RESTATE_BASE_DIR": str(folder / "restate-data"),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(free_port()),
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
        "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
        # 24 by default, for clusters that grow; on two cores every partition beyond a few only waits.
        "RESTATE_DEFAULT_NUM_PARTITIONS": "4",
    }


def _program() -> Path:
    """Find the server beside this interpreter; install it with npm, as package-lock.json pins it, when missing."""
    package = f"restate-server-{platform.system().lower()}-{_MACHINES.get(platform.machine(), platform.machine())}"
    program = _INSTALLED / "node_modules" / "@restatedev" / package / "bin" / "restate-server"
    if not program.exists():
        _install()
    if not program.exists():
        raise Absent(f"Restate is left out: its npm package has no server for this machine ({package})")
    return program


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Absent("Restate is left out: its server comes from npm, and there is no npm here")
    _INSTALLED.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "benchmarks" / name, _INSTALLED)
    print("Installing the Restate server with npm ...", file=sys.stderr)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]  # its scripts only send telemetry
    try:
        done = subprocess.run(
            command, cwd=_INSTALLED, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Absent(f"Restate is left out: npm was not done after {_INSTALL_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise Absent(f"Restate is left out: npm could not install its server:\n{done.stderr.strip()}")


def _environment() -> dict[str, str]:
    """Copy the environment without settings of another Restate cluster and without proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RESTATE_") and not name.lower().endswith("_proxy")
    }
