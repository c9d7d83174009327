"""The Restate server from its npm package, as a child process on loopback."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders.contender import Absent
from devstack.ports import free_port, port_answers
from devstack.process import ChildProcess
from devstack.stack import ROOT

_INSTALLED = Path(sys.prefix) / "restate"
_START_SECONDS = 60.0
_INSTALL_SECONDS = 300.0
_MACHINES = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


class RestateServer:
    """One Restate node with its data in `folder`; its own defaults, but for what is said at `_settings`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ingress, self._admin, self._node = free_port(), free_port(), free_port()
        self._child: ChildProcess | None = None

    @property
    def ingress_url(self) -> str:
        """Where orders are sent."""
        return f"http://127.0.0.1:{self._ingress}"

    @property
    def admin_url(self) -> str:
        """Where services are registered and journals are asked for."""
        return f"http://127.0.0.1:{self._admin}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start it; returns when it listens.

        Raises:
            Absent: its package cannot be had here.
            ServerFailed: it did not come up.
        """
        program = _program()
        self._child = child = ChildProcess(
            "Restate",
            [str(program), "--no-logo"],
            log=self._folder / "restate.log",
            env=_environment() | self._settings(),
            cwd=self._folder,
        )
        child.start()
        child.until(lambda: port_answers(self._ingress) and port_answers(self._admin), _START_SECONDS)

    def stop(self) -> None:
        """End it; nothing if it is not running."""
        if self._child is not None:
            self._child.stop()

    def _settings(self) -> dict[str, str]:
        return {
            "RESTATE_NODE_NAME": "bench",
            "RESTATE_BASE_DIR": str(self._folder / "restate-data"),
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(self._node),
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self._ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self._admin}",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
            # 24 by default, for clusters that grow; on two cores every partition beyond a few only waits.
            "RESTATE_DEFAULT_NUM_PARTITIONS": "4",
        }


def version() -> str:
    """Give the server's version, as it says it itself."""
    said = subprocess.run([str(_program()), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


def _program() -> Path:
    """Find the server, installed by npm as benchmarks/package-lock.json pins it, beside this interpreter."""
    package = f"restate-server-{platform.system().lower()}-{_MACHINES.get(platform.machine(), platform.machine())}"
    program = _INSTALLED / "node_modules" / "@restatedev" / package / "bin" / "restate-server"
    if not program.exists():
        _install()
    if not program.exists():
        raise Absent(f"Restate takes no part: its npm package has no server for this machine ({package})")
    return program


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Absent("Restate takes no part: its server comes from npm, and there is no npm here")
    _INSTALLED.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "benchmarks" / name, _INSTALLED)
    print("Installing the Restate server with npm ...", file=sys.stderr)
    # Its scripts would only report the installation to somebody.
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            command, cwd=_INSTALLED, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Absent(f"Restate takes no part: npm was not done after {_INSTALL_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise Absent(f"Restate takes no part: npm could not install its server:\n{done.stderr.strip()}")


def _environment() -> dict[str, str]:
    """Copy the environment without what would configure it for somebody's real cluster, or send it to a proxy."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RESTATE_") and not name.lower().endswith("_proxy")
    }
