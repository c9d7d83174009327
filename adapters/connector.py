"""New sessions of Postgres: from which host, with which credentials and settings, and why there is none."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg

from adapters.config import SecretUnreadable, read_secret
from adapters.database_url import SYSTEM_CERTIFICATES, Destination, Host, parse
from sagafence import CannotConnect

CONNECT_SECONDS = 2.0
"""Connecting, over all hosts together, and waiting for a free connection: below an attempt's start-to-close (5 s)
together with the statement itself (3 s)."""

CONNECTOR = "checkout_connector"
"""The execution option of an engine that holds its Connector."""

PASSWORD_FILE = "CHECKOUT_DATABASE_PASSWORD_FILE"  # noqa: S105 - the setting's name
URL_FILE = "CHECKOUT_DATABASE_URL_FILE"

# Login, database, right: an operator, or the next password, fixes these.
_REFUSING_CLASSES = ("28", "3D", "42")
# PgBouncer reports nearly everything with this code, an outage of Postgres included; its text says what it refuses.
_POOLER_CODE = "08P01"
_POOLER_REFUSES = (
    "password authentication failed",
    "SASL authentication failed",
    "auth failed",
    "no such user",
    "no such database",
    "unsupported startup parameter",
)
# Settings that older servers do not know.
_SINCE: Mapping[str, int] = {"transaction_timeout": 17}

# A query, because a pooler reports what it once heard; with the settings, by the simple protocol, in one round trip:
# over a slow link each counts against the time for connecting.
_REQUIRE_WRITABLE = (
    "DO $$ BEGIN IF current_setting('transaction_read_only') <> 'off' THEN"
    " RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'it is read-only'; END IF; END $$"
)

_DriverConnection = Any  # asyncpg's, which has no type parameters at run time

_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    UnicodeError,
)


@dataclass
class Admission:
    """Whether Postgres accepts new sessions of this process, shared by its engines."""

    reason: str = ""
    _refused_since: float | None = field(default=None, repr=False)

    def admit(self) -> None:
        """Note that a session works."""
        self._refused_since = None

    def refuse(self, reason: str) -> None:
        """Note that a new session was refused."""
        self.reason = reason
        if self._refused_since is None:
            self._refused_since = time.monotonic()

    def interrupt(self) -> None:
        """Note that no server answered, which says nothing of our credentials."""
        self._refused_since = None

    async def until_refused_for(self, seconds: float) -> None:
        """Return when every new session has been refused for so long, with none that works."""
        while self.refused_seconds < seconds:  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(min(1.0, seconds / 10))

    @property
    def refused_seconds(self) -> float:
        """For how long every new session has been refused; 0 unless the last one was."""
        return 0.0 if self._refused_since is None else time.monotonic() - self._refused_since


class Connector:
    """Makes sessions that can write, or for a reader any; an engine calls it for each new connection.

    Credentials in files are read again each time, so that a rotation needs no restart. With several hosts the one that
    answered last comes first, and each gets its share of the time: a dead one cannot use up all of it.

    Settings are set within the session: PgBouncer refuses them as start-up parameters.
    """

    def __init__(  # noqa: PLR0913 - what differs between the engines is said by name
        self,
        url: str,
        *,
        answer_seconds: float,
        settings: Mapping[str, str],
        url_file: Path | None = None,
        password_file: Path | None = None,
        admission: Admission | None = None,
        is_reader: bool = False,
    ) -> None:
        self._destination = parse(url)
        self._answer_seconds = answer_seconds
        self._settings = settings
        self._url_file = url_file
        self._password_file = password_file
        self.admission = admission or Admission()
        self._requires = "" if is_reader else _REQUIRE_WRITABLE
        self._preferred: Host | None = None

    async def __call__(self) -> _DriverConnection:
        """Open a session.

        Raises:
            CannotConnect: no host gives one.
            TimeoutError: no host answers in time.
        """
        try:
            connection = await self._connect_to_any()
        except CannotConnect as failure:
            if failure.is_refusal:
                self.admission.refuse(str(failure))
            else:
                self.admission.interrupt()
            raise
        except TimeoutError:
            self.admission.interrupt()
            raise
        self.admission.admit()
        return connection

    async def _connect_to_any(self) -> _DriverConnection:
        destination = self._destination = self._read_destination()
        hosts = sorted(destination.hosts, key=lambda host: host != self._preferred)
        deadline = time.monotonic() + min(destination.connect_seconds or CONNECT_SECONDS, CONNECT_SECONDS)
        failures: dict[Host, Exception] = {}
        for number, host in enumerate(hosts):
            share = (deadline - time.monotonic()) / (len(hosts) - number)
            try:
                async with asyncio.timeout(share):
                    connection = await self._connect_to(host)
            except _FAILURES as error:
                failures[host] = error
            else:
                self._preferred = host
                return connection
        raise _summary(failures)

    async def _connect_to(self, host: Host) -> _DriverConnection:
        destination = self._destination
        connection = await asyncpg.connect(
            **_tls(destination),
            host=host.name,
            port=host.port,
            user=destination.user,
            password=self._password(),
            database=destination.database,
            command_timeout=self._answer_seconds,
            # The environment may name another one; what we need is checked below, for poolers too.
            target_session_attrs="any",
            server_settings={"application_name": destination.application_name}
            | ({"options": destination.options} if destination.options else {}),
        )
        try:
            await connection.execute(f"{self._requires};{self._statements(connection)}")
        except BaseException:
            connection.terminate()
            raise
        return connection

    @property
    def caution(self) -> str | None:
        """A warning for the log: what the URL of the newest session asks for and does not get."""
        return self._destination.caution

    def _read_destination(self) -> Destination:
        if self._url_file is None:
            return self._destination
        try:
            return parse(read_secret(URL_FILE, self._url_file))
        except SecretUnreadable as error:
            raise CannotConnect(str(error), is_refusal=True) from error
        except ValueError as error:
            raise CannotConnect(f"{URL_FILE}: the URL in it {error}", is_refusal=True) from error

    def _password(self) -> str | None:
        if self._password_file is None:
            return self._destination.password
        try:
            return read_secret(PASSWORD_FILE, self._password_file)
        except SecretUnreadable as error:
            raise CannotConnect(str(error), is_refusal=True) from error

    def _statements(self, connection: _DriverConnection) -> str:
        version = connection.get_server_version().major
        known = {name: value for name, value in self._settings.items() if version >= _SINCE.get(name, 0)}
        return ";".join(f"SET {name} = '{value}'" for name, value in known.items())


def reports_read_only(connection: _DriverConnection) -> bool:
    """Return whether the server has reported, without a query, that a session cannot write; since Postgres 14."""
    settings = connection.get_settings()
    return "on" in (
        getattr(settings, "in_hot_standby", None),
        getattr(settings, "default_transaction_read_only", None),
    )


def _tls(destination: Destination) -> dict[str, Any]:
    """Return the driver's arguments. It reads certificate files at each connection, but only when they are in a URL."""
    parameters = dict(destination.tls)
    if parameters.get("sslrootcert") != SYSTEM_CERTIFICATES:
        return {"dsn": f"postgresql://?{urlencode(parameters)}"} if parameters else {}
    context = ssl.create_default_context()
    if "sslcert" in parameters:
        context.load_cert_chain(
            parameters["sslcert"], parameters.get("sslkey"), password=lambda: parameters.get("sslpassword", "")
        )
    return {"ssl": context, "direct_tls": parameters.get("sslnegotiation") == "direct"}


def _summary(failures: Mapping[Host, Exception]) -> Exception:
    """Make one failure of each host's: a refusal says more than another answer, and that more than a timeout."""
    if all(isinstance(error, TimeoutError) for error in failures.values()):
        return TimeoutError("no host answered in time")
    clearest = max(failures.values(), key=lambda error: (_is_refusal(error), bool(getattr(error, "sqlstate", None))))
    texts = {host: (str(error) or type(error).__name__).splitlines()[0] for host, error in failures.items()}
    message = "; ".join(f"{host}: {text}" if len(texts) > 1 else text for host, text in texts.items())
    failure = CannotConnect(message, sqlstate=getattr(clearest, "sqlstate", None), is_refusal=_is_refusal(clearest))
    failure.__cause__ = clearest
    return failure


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, CannotConnect):
        return error.is_refusal
    code = getattr(error, "sqlstate", None) or ""
    if code == _POOLER_CODE:
        return any(words in str(error) for words in _POOLER_REFUSES)
    return code.startswith(_REFUSING_CLASSES) or isinstance(error, asyncpg.exceptions.ClientConfigurationError)
