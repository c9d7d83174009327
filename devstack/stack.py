"""The whole stack on loopback: Postgres with our schema, Temporal with our search attributes, workers and the API."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from domain.policies import SEARCH_ATTRIBUTES
from sagafence.devservers.passwords import SUPERUSER, write_for_us_alone
from sagafence.devservers.ports import free_port, require_free
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.process import ChildProcess
from sagafence.devservers.temporal import TemporalServer

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "checkout"
ROLE = "checkout"
READER = "checkout_reader"
OTHER_ROLES = (READER, "checkout_operator")


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, on 127.0.0.1."""

    postgres: int
    temporal: int
    ui: int
    api: int

    @classmethod
    def free(cls) -> "Ports":
        """Choose free ports."""
        return cls(free_port(), free_port(), free_port(), free_port())


DEFAULT_PORTS = Ports(postgres=5432, temporal=7233, ui=8233, api=8080)
"""The defaults of worker, starter and API."""


class DevStack:
    """Both servers as child processes, with the schema and the demo's catalogue. They end with this process.

    Args:
        folder: holds the data and the logs of the servers; made when missing.
        ports: where to listen; free ones by default.
        keep: whether the data are kept for the next start on the same folder.
        fsync: whether Postgres waits for the disk. Without, a crash of the machine loses its data.
        guarded: whether Postgres asks every role for a password, and not its superuser alone. They are in private
            files of `folder`: `pgpass` for psql, `checkout.password` for a worker, `checkout_reader.password`
            for an API.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ports: Ports | None = None,
        keep: bool = False,
        fsync: bool = True,
        guarded: bool = False,
    ) -> None:
        self.folder = folder
        self._keep = keep
        self.ports = ports or Ports.free()
        folder.mkdir(parents=True, exist_ok=True)
        self.postgres = PostgresServer(
            folder / "postgres", port=self.ports.postgres, log=folder / "postgres.log", fsync=fsync, guarded=guarded
        )
        self.temporal = TemporalServer(
            port=self.ports.temporal,
            ui_port=self.ports.ui,
            log=folder / "temporal.log",
            db_file=folder / "temporal.db" if keep else None,
            search_attributes=SEARCH_ATTRIBUTES,
        )
        self.workers: list[ChildProcess] = []
        """In the sequence in which they were started."""
        self._api: ChildProcess | None = None

    def start(self) -> None:
        """Start both servers and bring the schema up to date.

        Raises:
            ServerFailed: a server does not come up; the message says why and what to do.
        """
        try:
            self.postgres.start()
            make_database(self.postgres, DATABASE)
            if self.postgres.guarded:
                self._give_passwords()
            self.temporal.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the API, the workers, then the servers, and delete the data unless it is to be kept. Safe to repeat."""
        if self._api is not None:
            self._api.stop()
        for worker in self.workers:
            worker.stop()
        self.temporal.stop()
        if self._keep:
            self.postgres.stop()
        else:
            self.postgres.remove()

    def _give_passwords(self) -> None:
        """Give each role its password, and write the files for psql, a worker and the API."""
        passwords = give_passwords(self.postgres)
        lines = [f"127.0.0.1:{self.ports.postgres}:*:{role}:{password}\n" for role, password in passwords.items()]
        write_for_us_alone(self.pgpass, "".join(lines))
        for role in (ROLE, READER):
            write_for_us_alone(self.password_file(role), f"{passwords[role]}\n")

    @property
    def pgpass(self) -> Path:
        """The `PGPASSFILE` of a guarded stack, with every role's password."""
        return self.folder / "pgpass"

    def password_file(self, role: str) -> Path:
        """Return the file with the password of a worker's role, or the API's, of a guarded stack."""
        return self.folder / f"{role}.password"

    @property
    def api_keys_file(self) -> Path:
        """The file of the API's keys."""
        return self.folder / "api-keys.json"

    def psql_command(self, role: str) -> str:
        """Return the psql command line for a guarded stack's database; no password is in it."""
        where = f"-h 127.0.0.1 -p {self.ports.postgres} -U {role} -d {DATABASE}"
        return f"env PGPASSFILE={shlex.quote(str(self.pgpass))} {shlex.quote(str(self.postgres.bin('psql')))} {where}"

    @property
    def database_url(self) -> str:
        """The database's URL for the service's role."""
        return self.postgres.url(DATABASE, ROLE)

    def environment(self, **more: str) -> Mapping[str, str]:
        """Return an environment in which worker.py and starter.py find this stack and nothing else."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("CHECKOUT_", "TEMPORAL_"))
        }
        return inherited | {
            **self._database_settings(ROLE),
            "CHECKOUT_UI_URL": f"http://127.0.0.1:{self.ports.ui}",
            "CHECKOUT_LOG_FILE": str(self.folder / "saga.log"),
            "TEMPORAL_ADDRESS": self.temporal.address,
            **more,
        }

    def _database_settings(self, role: str) -> dict[str, str]:
        if not self.postgres.guarded:
            return {"CHECKOUT_DATABASE_URL": self.postgres.url(DATABASE, role)}
        return {
            "CHECKOUT_DATABASE_URL": f"postgresql://{role}@127.0.0.1:{self.ports.postgres}/{DATABASE}",
            "CHECKOUT_DATABASE_PASSWORD_FILE": str(self.password_file(role)),
        }

    def start_worker(self, **environment: str) -> ChildProcess:
        """Start a worker.py on this stack; more settings as keyword arguments."""
        number = len(self.workers) + 1
        worker = ChildProcess(
            f"worker {number}",
            [sys.executable, str(ROOT / "worker.py")],
            log=self.folder / f"worker-{number}.log",
            env=self.environment(**environment),
            cwd=ROOT,
        )
        worker.start()
        self.workers.append(worker)
        return worker

    def api_environment(self, **more: str) -> Mapping[str, str]:
        """Return an environment for api.py and for the command that makes its keys."""
        return self.environment(
            **self._database_settings(READER),
            CHECKOUT_API_PORT=str(self.ports.api),
            CHECKOUT_API_KEYS_FILE=str(self.api_keys_file),
            **more,
        )

    def start_api(self, **environment: str) -> ChildProcess:
        """Start api.py on this stack, as the role that reads; more settings as keyword arguments.

        Raises:
            ServerFailed: another process has its port.
        """
        api = ChildProcess(
            "the API",
            [sys.executable, str(ROOT / "api.py")],
            log=self.folder / "api.log",
            env=self.api_environment(**environment),
            cwd=ROOT,
            pid_file=self.folder / "api.pid",  # one that its owner's death has not ended yet would keep the port
        )
        api.end_orphan()
        require_free("the API", self.ports.api)
        api.start()
        self._api = api
        return api

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def make_database(postgres: PostgresServer, database: str) -> None:
    """Create the database when it is missing and run setup.sql and demo.sql on it with psql.

    Raises:
        ServerFailed: psql refused.
    """
    exists = psql(postgres, "postgres", "-Atc", f"SELECT 1 FROM pg_database WHERE datname = '{database}'")  # noqa: S608 - a name of ours
    if not exists.strip():
        psql(postgres, "postgres", "-c", f'CREATE DATABASE "{database}"')
    # A role may connect to its own database alone.
    psql(postgres, "postgres", "-c", "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
    scripts = [argument for name in ("setup.sql", "devstack/demo.sql") for argument in ("-f", str(ROOT / name))]
    psql(postgres, database, "-v", "ON_ERROR_STOP=1", *scripts)


def give_passwords(postgres: PostgresServer) -> dict[str, str]:
    """Give each role of a guarded server its password; setup.sql gives none."""
    passwords = {role: postgres.passwords.of(role) for role in (ROLE, *OTHER_ROLES, SUPERUSER)}
    # Read by psql, so that no list of processes shows them.
    changes = [f"ALTER ROLE {role} PASSWORD '{password}';" for role, password in passwords.items()]
    psql(postgres, "postgres", "-v", "ON_ERROR_STOP=1", "-f", "-", given="\n".join(changes))
    return passwords


def psql(postgres: PostgresServer, database: str, *arguments: str, given: str | None = None) -> str:
    """Run psql on a server as its superuser; see `PostgresServer.psql`."""
    return postgres.psql(database, *arguments, given=given)
