"""A database URL in the terms of libpq, as providers of Postgres issue it."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

DRIVER = "postgresql+asyncpg"
DEFAULT_APPLICATION_NAME = "checkout"
SYSTEM_CERTIFICATES = "system"
"""The `sslrootcert` that stands for the certificates that the operating system trusts."""

_SHAPE = "must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters percent-encoded"
_URL = re.compile(
    r"(?P<scheme>postgresql\+asyncpg|postgresql|postgres)://"
    r"(?:(?P<user>[^:@/?]*)(?::(?P<password>[^@?]*))?@)?"
    r"(?P<hosts>[^/?@]*)"
    r"(?:/(?P<database>[^?]*))?"
    r"(?:\?(?P<query>.*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>\d+)?)?")
_USER_WITH_AN_AT = re.compile(r"[?&]user=[^&]*@")
_DEFAULT_PORT = 5432

_ALLOWED: Mapping[str, frozenset[str]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "sslnegotiation": frozenset({"postgres", "direct"}),
    "channel_binding": frozenset({"disable", "prefer", "require"}),
    # The driver has no encryption by GSSAPI.
    "gssencmode": frozenset({"disable", "prefer"}),
    # A worker writes: `any` means read-write too (adapters/connector.py).
    "target_session_attrs": frozenset({"any", "read-write", "primary"}),
}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_TLS = frozenset(
    {"sslmode", "sslnegotiation", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version", *_FILES}
)
_PLACE = frozenset({"host", "port", "user", "dbname"})
_OTHERS = frozenset({"application_name", "connect_timeout", "options"})
_KNOWN = _TLS | _PLACE | _OTHERS | frozenset(_ALLOWED)
_VERIFYING = frozenset({"verify-ca", "verify-full"})


@dataclass(frozen=True)
class Host:
    """One server: a name or an address with a port, or the folder of a Unix socket; None for the driver's default."""

    name: str | None
    port: int

    def __str__(self) -> str:
        return f"{self.name or 'the default host'}:{self.port}"


@dataclass(frozen=True)
class Destination:
    """Where to connect, as whom, and how."""

    hosts: tuple[Host, ...]
    database: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    """libpq's `ssl*` parameters, as given."""
    application_name: str = DEFAULT_APPLICATION_NAME
    connect_seconds: float | None = None
    options: str | None = None
    caution: str | None = None
    """A warning for the log: what the URL asks for and does not get."""


def parse(url: str) -> Destination:
    """Read a URL.

    Raises:
        ValueError: it is none, or asks for what is not supported. The message quotes only names of parameters.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(_SHAPE)
    # With an @, / or ? in a password that is not percent-encoded, parts of it would be in places that messages quote.
    if url.count("@") > 1 or ("@" in (found["query"] or "") and not _USER_WITH_AN_AT.search(url)):
        raise ValueError(_SHAPE)
    query = _query(found["query"] or "")
    database = query.get("dbname") or unquote(found["database"] or "")
    if not database:
        raise ValueError(_SHAPE)
    user = query.get("user") or unquote(found["user"] or "")
    tls = {name: value for name, value in query.items() if name in _TLS}
    _check_tls(tls)
    return Destination(
        hosts=_hosts(query["host"], query.get("port", "")) if query.get("host") else _hosts_of(found["hosts"], query),
        database=database,
        user=user or None,
        password=None if found["password"] is None else unquote(found["password"]),
        tls=tls,
        application_name=query.get("application_name") or DEFAULT_APPLICATION_NAME,
        connect_seconds=_seconds(query.get("connect_timeout", "0")),
        options=query.get("options"),
        caution=_caution(query),
    )


def _query(given: str) -> dict[str, str]:
    query = dict(_pairs(given))
    if "ssl" in query:  # how the driver spells it
        query.setdefault("sslmode", query.pop("ssl"))
    if unknown := sorted(set(query) - _KNOWN):
        raise ValueError(f"has unknown parameters {', '.join(unknown)}; understood are {', '.join(sorted(_KNOWN))}")
    for name, allowed in _ALLOWED.items():
        if name in query and query[name] not in allowed:
            raise ValueError(f"has a {name} that is not understood; it can be {', '.join(sorted(allowed))}")
    return query


def _pairs(given: str) -> list[tuple[str, str]]:
    with contextlib.suppress(ValueError):
        return parse_qsl(given, keep_blank_values=True, strict_parsing=bool(given))
    raise ValueError(_SHAPE)  # with no value in its context


def _hosts_of(given: str, query: Mapping[str, str]) -> tuple[Host, ...]:
    """Read the hosts between @ and /, each with its port; a folder is percent-encoded there."""
    if not given:
        return _hosts("", query.get("port", ""))
    hosts = []
    for each in given.split(","):
        found = _HOST.fullmatch(each)
        if found is None:
            raise ValueError(_SHAPE)
        hosts.append(Host(found["v6"] or unquote(found["name"]), _port(found["port"] or query.get("port", ""))))
    return tuple(hosts)


def _hosts(names: str, ports: str) -> tuple[Host, ...]:
    """Read `host=` and `port=`: lists of the same length, or one port for all."""
    if not names:
        return (Host(None, _port(ports)),)
    hosts, numbers = names.split(","), ports.split(",")
    if len(numbers) == 1:
        numbers *= len(hosts)
    if len(numbers) != len(hosts) or not all(hosts):
        raise ValueError("has hosts and ports that do not match: one port for each host, or one for all")
    return tuple(_host(name, number) for name, number in zip(hosts, numbers, strict=True))


def _host(name: str, port: str) -> Host:
    if not name.startswith("/") and not port and (found := _HOST.fullmatch(name)) and found["port"]:
        return Host(found["v6"] or found["name"], _port(found["port"]))  # host=h1:5432, as some write it
    return Host(name.strip("[]"), _port(port))


def _port(given: str) -> int:
    if not given:
        return _DEFAULT_PORT
    if not given.isdecimal() or not 0 < int(given) < 65_536:
        raise ValueError(_SHAPE)
    return int(given)


def _seconds(given: str) -> float | None:
    if not given.isdecimal():
        raise ValueError("has a connect_timeout that is no number of seconds")
    return float(given) or None


def _check_tls(tls: Mapping[str, str]) -> None:
    mode, root = tls.get("sslmode", "prefer"), tls.get("sslrootcert")
    for name in _FILES:
        path = tls.get(name)
        if path and path != SYSTEM_CERTIFICATES and not Path(path).is_file():
            raise ValueError(f"names a file as {name} that is not there")
    if root == SYSTEM_CERTIFICATES and mode != "verify-full":
        raise ValueError("has sslrootcert=system, which needs sslmode=verify-full")
    root = root or os.environ.get("PGSSLROOTCERT") or os.path.expanduser("~/.postgresql/root.crt")  # noqa: PTH111 - no error where there is no home
    if mode in _VERIFYING and root != SYSTEM_CERTIFICATES and not Path(root).is_file():
        raise ValueError(f"has sslmode={mode}, which needs sslrootcert=FILE, or sslrootcert=system with verify-full")


def _caution(query: Mapping[str, str]) -> str | None:
    if query.get("channel_binding") == "require" and query.get("sslmode") != "verify-full":
        return (
            "asks for channel_binding=require, which cannot be had from the driver: passwords go by SCRAM without it. "
            "sslmode=verify-full keeps out a man in the middle by the server's certificate"
        )
    return None
