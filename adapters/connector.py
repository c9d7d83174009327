"""New sessions of Postgres: which host, which credentials, which settings; and what it means that there is none."""

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

CONNECT_SECONDS = 2.0
"""Connecting, over all hosts together, and waiting for a free connection: below an attempt's start-to-close (5 s)
together with the statement itself (3 s)."""

CONNECTOR = "checkout_connector"
"""Execution option of an engine: what makes its sessions."""

PASSWORD_FILE = "CHECKOUT_DATABASE_PASSWORD_FILE"  # noqa: S105 - the setting's name
URL_FILE = "CHECKOUT_DATABASE_URL_FILE"

# Who we are, the database, and the right to use it: a person, or who rotates our password, puts these right.
_REFUSING_CLASSES = ("28", "3D", "42")
# PgBouncer says nearly all with this code, that Postgres is away included; its words tell what it refuses.
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

# Asked, for what a pooler reports is what it once heard; together with the settings, by the simple protocol, in one
# round trip: over a slow link each of them counts against the time for connecting.
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


class CannotConnect(ConnectionError):
    """No host gives us a session that can write. An outage, whatever Postgres says: no statement was refused."""

    def __init__(self, message: str, *, sqlstate: str | None = None, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_refusal = is_refusal
        """Somebody answers, and lets us in under no circumstances: credentials, the database's name, a right."""


@dataclass
class Admission:
    """Whether Postgres lets this process in, as far as its engines have seen."""

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
        """Note that nobody could answer, which says nothing of our credentials."""
        self._refused_since = None

    async def until_refused_for(self, seconds: float) -> None:
        """Return when every new session has been refused for so long, and no old one has worked."""
        while self.refused_seconds < seconds:  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(min(1.0, seconds / 10))

    @property
    def refused_seconds(self) -> float:
        """For how long every new session has been refused, with none that works; 0 unless the last one was."""
        return 0.0 if self._refused_since is None else time.monotonic() - self._refused_since


class Connector:
    """Makes sessions that can write: what an engine calls for each new connection.

    Credentials in files are read again each time: whoever rotates them need not restart anybody. With several hosts the
    one that answered last comes first, and each gets its share of the time: a dead one cannot use up all of it.

    Settings are set once the session is there. PgBouncer refuses them as start-up parameters.
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
    ) -> None:
        self._destination = parse(url)
        self._answer_seconds = answer_seconds
        self._settings = settings
        self._url_file = url_file
        self._password_file = password_file
        self.admission = admission or Admission()
        self._preferred: Host | None = None

    async def __call__(self) -> _DriverConnection:
        """Give a new session.

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
        destination = self._destination = self._asked_for()
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
            # The environment may name another one; what is asked for is looked at below, for poolers too.
            target_session_attrs="any",
            server_settings={"application_name": destination.application_name}
            | ({"options": destination.options} if destination.options else {}),
        )
        try:
            await connection.execute(f"{_REQUIRE_WRITABLE};{self._statements(connection)}")
        except BaseException:
            connection.terminate()
            raise
        return connection

    @property
    def caution(self) -> str | None:
        """What the URL of the newest session asks for and does not get, for the log."""
        return self._destination.caution

    def _asked_for(self) -> Destination:
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
    """Tell whether the server has reported of a session, unasked, that it cannot write; since Postgres 14."""
    settings = connection.get_settings()
    return "on" in (
        getattr(settings, "in_hot_standby", None),
        getattr(settings, "default_transaction_read_only", None),
    )


def _tls(destination: Destination) -> dict[str, Any]:
    """Give the driver's arguments. It reads certificate files itself, at each connection, but from a URL alone."""
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
    """Make one failure of each host's: a refusal tells more than an answer, and an answer more than silence."""
    if all(isinstance(error, TimeoutError) for error in failures.values()):
        return TimeoutError("no host answered in time")
    telling = max(failures.values(), key=lambda error: (_is_refusal(error), bool(getattr(error, "sqlstate", None))))
    said = {host: (str(error) or type(error).__name__).splitlines()[0] for host, error in failures.items()}
    message = "; ".join(f"{host}: {words}" if len(said) > 1 else words for host, words in said.items())
    failure = CannotConnect(message, sqlstate=getattr(telling, "sqlstate", None), is_refusal=_is_refusal(telling))
    failure.__cause__ = telling
    return failure


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, CannotConnect):
        return error.is_refusal
    code = getattr(error, "sqlstate", None) or ""
    if code == _POOLER_CODE:
        return any(words in str(error) for words in _POOLER_REFUSES)
    return code.startswith(_REFUSING_CLASSES) or isinstance(error, asyncpg.exceptions.ClientConfigurationError)
