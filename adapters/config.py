"""Settings from the environment and secrets from files: `CHECKOUT_*`; the SDK's own loader reads `TEMPORAL_*`."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.database_url import DRIVER, parse
from adapters.log_setup import LogFormat
from domain.policies import AUDIT_EVERY, CHECKOUT_TASK_QUEUE, SWEEP_EVERY

PREFIX = "CHECKOUT_"
DEFAULT_TEMPORAL_ADDRESS = "127.0.0.1:7233"
DEFAULT_UI_URL = "http://127.0.0.1:8233"
_DEPLOYMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_BUILD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
# What Kubernetes puts into every container for a service called `checkout`, or `checkout-` and more:
# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_SERVICE_LINK = re.compile(
    rf"{PREFIX}([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_PORT = re.compile(rf"{PREFIX}([A-Z0-9_]+_)?PORT=(tcp|udp|sctp)://.*")
_NO_MODES = "there are no execution modes any more (docs/decisions.md, 24): remove it"
# What became of the settings of earlier builds.
EARLIER = {
    "CHECKOUT_LANE": _NO_MODES,
    "CHECKOUT_EXECUTION_MODE": _NO_MODES,
    "CHECKOUT_TELLS_LOG": "it is called CHECKOUT_WRITES_LOG now",
}
# Invisible in a terminal, and part of the value all the same: a line end of `echo`, a pasted blank.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u200b\ufeff"
_INVISIBLE = rf"[\s{_CONTROLS}]"
_INVISIBLE_AT_AN_END = re.compile(rf"\A{_INVISIBLE}|{_INVISIBLE}\Z")
# Between the ends a blank may be part of a name, such as a folder's; a line end or a NUL never is.
_INVISIBLE_WITHIN = re.compile(rf"[{_CONTROLS}]")
_PEM = "-----BEGIN "
_SECRET_NAME = re.compile("DATABASE_URL|API_KEY|PASSWORD|SECRET|TOKEN|GRPC_META|CODEC_AUTH|TLS_.*(KEY|DATA)")
_CREDENTIALS_IN_A_URL = re.compile(r"//[^/?#]*@|^[^/]*:[^/]*@")


class ConfigurationError(Exception):
    """The environment is wrong. The message has a line for each problem, with its fix."""


class SecretUnreadable(Exception):
    """A secret's file cannot be used. The message names the setting and the reason, and quotes nothing of the file."""


def _database_url(url: SecretStr) -> SecretStr:
    """Accept the URL as other tools write it, and put our driver into it."""
    parse(url.get_secret_value())
    return SecretStr(f"{DRIVER}://{url.get_secret_value().partition('://')[2]}")


def _log_level(level: str) -> str:
    if level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return level.upper()


def _http_url(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("must begin with http:// or https://")
    if _CREDENTIALS_IN_A_URL.search(url):
        raise ValueError("must have no user and no password: every link to a history would show them")
    return url.rstrip("/")


def _deployment_name(name: str) -> str:
    # No dot: the server writes a version as name.build and reads it back up to the first one.
    if not _DEPLOYMENT_NAME.fullmatch(name):
        raise ValueError("must be 1 to 100 letters, digits, _ or -, and begin with a letter or digit")
    return name


def _build_id(build_id: str | None) -> str | None:
    if not build_id:  # see _unset_when_empty
        return None
    if not _BUILD_ID.fullmatch(build_id):
        raise ValueError("must be 1 to 100 letters, digits, _ . + or -, and begin with a letter or digit")
    return build_id


def _unset_when_empty(value: object) -> object:
    """Take an empty value as unset: docker-compose.yml can pass on a variable, but not the lack of one."""
    return value or None


_OptionalFile = Annotated[Path | None, BeforeValidator(_unset_when_empty)]


class WritesLog(StrEnum):
    """Whether a worker writes the log of order states."""

    AUTO = "auto"
    """The first worker on a machine writes the file, and the next one when it ends; each writes to standard output."""
    ALWAYS = "always"
    """It has to: where another worker writes the file, that is logged as an error."""
    NEVER = "never"
    """It does not."""


class StarterSettings(BaseSettings):
    """The settings of a client of the checkout, which never learns where the database is."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", hide_input_in_errors=True)

    task_queue: Annotated[str, Field(min_length=1, max_length=200)] = CHECKOUT_TASK_QUEUE
    """The task queue of the workers, and of the orders that are started."""
    ui_url: Annotated[str, AfterValidator(_http_url)] = DEFAULT_UI_URL
    """The address of the Temporal UI; links to histories begin with it."""
    temporal_api_key_file: _OptionalFile = None
    """File with Temporal's API key, read again by worker and API when it changes. Wins over `TEMPORAL_API_KEY`."""


class ServiceSettings(StarterSettings):
    """What the processes have in common that know where the database is."""

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr(
        f"{DRIVER}://checkout:checkout@127.0.0.1:5432/checkout"
    )
    """The database, as libpq writes it: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, several hosts by commas, a
    socket's folder as `?host=/FOLDER`, and `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `channel_binding`,
    `application_name`, `connect_timeout`, `target_session_attrs`."""
    database_url_file: _OptionalFile = None
    """File with the whole URL, read again for each new connection. Wins over `CHECKOUT_DATABASE_URL`."""
    database_password_file: _OptionalFile = None
    """File with the password alone, read again for each new connection. Wins over a URL's."""
    log_level: Annotated[str, AfterValidator(_log_level)] = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    log_format: LogFormat = LogFormat.TEXT
    """Form of the process' own log: `text` or `json`, a line for each record."""


class WorkerSettings(ServiceSettings):
    """The settings of a worker."""

    database_refused_seconds: Annotated[float, Field(gt=0, le=86_400)] = 180
    """How long Postgres may refuse every new session, while no open one works, before the worker ends with status 1."""
    database_pool_size: Annotated[int, Field(ge=1, le=500)] = 20
    """Connections for steps, and workflow tasks at once. A worker has up to 2 more for the sweep and 1 for an audit."""
    max_concurrent_activities: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Activities at once; those without a connection wait for one."""
    max_cached_workflows: Annotated[int, Field(ge=0, le=100_000)] = 1_000
    """Workflows kept in memory."""
    shutdown_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 20
    """How long running activities may go on after SIGTERM before they are cancelled."""
    startup_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120
    """How long to wait at the start for Temporal and Postgres."""
    sweep_every_seconds: Annotated[int, Field(ge=0, le=86_400)] = int(SWEEP_EVERY.total_seconds())
    """How often the sweep runs by itself; 0 for never."""
    audit_every_seconds: Annotated[int, Field(ge=0, le=86_400)] = int(AUDIT_EVERY.total_seconds())
    """How often the audit runs by itself; 0 for never."""
    build_id: Annotated[str | None, AfterValidator(_build_id)] = None
    """The build of this worker (docs/upgrades.md). Without one the worker is unversioned: it takes every task."""
    deployment_name: Annotated[str, AfterValidator(_deployment_name)] = "checkout"
    """Temporal's name for all builds of this service. Means nothing without a build id."""
    heartbeat_file: _OptionalFile = None
    """File that a running worker touches every two seconds, for `python -m adapters.heartbeat`. One per worker."""
    log_file: Path = Path("saga.log")
    """Where saga.log is written: a file in a folder that exists, or `-` for standard output."""
    writes_log: WritesLog = WritesLog.AUTO
    """Which workers write saga.log: `auto`, the first of those that share a file, or each to its standard output;
    `always`, and it is an error in the log where another worker has the file; `never`."""


class ApiSettings(ServiceSettings):
    """The settings of the HTTP API."""

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr(
        f"{DRIVER}://checkout_reader@127.0.0.1:5432/checkout"
    )
    """The database, as for a worker, and as the role `checkout_reader`: one that may write is refused. A standby will
    do."""
    api_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on."""
    api_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """The port to listen on; 0 for any that is free."""
    api_keys_file: Path = Path("api-keys.json")
    """The API keys, hashed; `python -m http_api.keys` makes and revokes them. Read again when it changes."""
    api_requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 100
    """How many requests a caller may make, over two seconds together; each process counts for itself."""
    api_orders_together: Annotated[int, Field(ge=1, le=1_000)] = 250
    """How many orders that come at the same time may share a workflow: group commit. 1 gives each one of its own."""
    api_oidc_issuer: Annotated[str | None, BeforeValidator(_unset_when_empty)] = None
    """The OpenID provider whose access tokens are accepted beside API keys: its `iss`, below which its configuration
    is found."""
    api_oidc_audience: Annotated[str | None, BeforeValidator(_unset_when_empty)] = None
    """The `aud` that its tokens must have; needed with an issuer."""


_SettingsT = TypeVar("_SettingsT", bound=StarterSettings)


def load(kind: type[_SettingsT]) -> _SettingsT:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: with every wrong or unknown `CHECKOUT_*` variable at once.
    """
    known = _known_names()
    problems = [
        f"{name}: {_why_unknown(name, known)}"
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIX) and name not in known and not _is_service_link(name, value)
    ]
    invisible = _invisible(known)
    problems += invisible.values()
    try:
        settings = kind()
    except ValidationError as error:
        for issue in error.errors():
            name = PREFIX + "_".join(map(str, issue["loc"])).upper()
            if name in invisible:
                continue  # other problems may follow from that one
            problems.append(f"{name}: {issue['msg'].removeprefix('Value error, ')}{_shown(name, issue['input'])}")
    # Outside the handler: the validation's error would be this one's context, with the values in it.
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


def read_secret(setting: str, file: Path) -> str:
    """Read the one line of a secret's file.

    Raises:
        SecretUnreadable: the file is missing, unreadable, or not one line of text.
    """
    try:
        content = file.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        problem = error.strerror or type(error).__name__
    except UnicodeError:
        problem = "it is not UTF-8"
    else:
        if content and not _has_control_character(content):
            return content
        problem = "it is not one line of text" if content else "it is empty"
    # Outside the handlers: the error's context would have the path, or all that was read.
    raise SecretUnreadable(f"{setting} cannot be read: {problem}")


def _has_control_character(content: str) -> bool:
    return any(character < " " or "\x7f" <= character <= "\x9f" for character in content)


def _why_unknown(name: str, known: set[str]) -> str:
    return EARLIER.get(name) or f"there is no such setting; known are {', '.join(sorted(known))}"


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_PORT.fullmatch(f"{name}={value}"))


def _invisible(known: set[str]) -> dict[str, str]:
    """Find the settings, ours and the SDK's, with invisible characters; return the problem of each."""
    return {
        name: f"{name}: {problem}{_shown(name, value)}"
        for name, value in sorted(os.environ.items())
        if (name in known or name.startswith("TEMPORAL_"))
        and not name.endswith("_DATA")  # a PEM file has lines, and ends with a line end
        and (problem := _invisible_part(value))
    }


def _invisible_part(value: str) -> str:
    if _INVISIBLE_AT_AN_END.search(value):
        return "begins or ends with white space or a control character"
    if _INVISIBLE_WITHIN.search(value) and not value.startswith(_PEM):
        return "has a control character in it"
    return ""


def _shown(name: str, value: object) -> str:
    """Quote a value in a message, unless it may be a secret, well-formed or not."""
    return "" if _SECRET_NAME.search(name) or _CREDENTIALS_IN_A_URL.search(str(value)) else f" (it is {value!a})"


def _known_names() -> set[str]:
    return {PREFIX + field.upper() for field in WorkerSettings.model_fields | ApiSettings.model_fields}
