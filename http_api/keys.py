"""API keys: who may call the API, and for what. A file has them, hashed.

    python -m http_api.keys create shop --scope buy --scope read
    python -m http_api.keys list
    python -m http_api.keys revoke k3f9a2c1

The file is CHECKOUT_API_KEYS_FILE, api-keys.json by default. A running API reads it again when it changes.
A key is shown once, when it is made. Keys of one name are one caller: make the new one before you revoke the old one,
and what was sent with the old one can be repeated with the new one.

Exit status: 0 done; 1 the file cannot be read or written; 2 wrong usage, or no such key.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ConfigDict, Field, TypeAdapter
from typer.exceptions import TyperException

from adapters.config import ApiSettings, ConfigurationError, load
from adapters.process_exit import leave
from adapters.program import show
from domain.identifiers import composed, identifier_problem
from domain.model import MAX_NAME_LENGTH

_PREFIX = "ck"
_ID_BYTES, _SECRET_BYTES = 4, 32


class Scope(StrEnum):
    """What a caller may do."""

    BUY = "buy"
    """Place orders."""
    READ = "read"
    """See orders and the audit."""
    OPERATE = "operate"
    """See them too, cancel, retry and resolve orders, and run an audit."""


@dataclass(frozen=True)
class Key:
    """A key without its secret."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: str
    name: str
    """Who has it: kept in the log of an order that its holder cancels, retries or resolves."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the secret, which has 256 random bits: there is nothing to guess, so no slow hash is needed."""
    scopes: tuple[Scope, ...]
    customers: tuple[str, ...] | None
    """For whom orders may be placed, and whose may be seen; None for all."""
    created_at: str
    revoked_at: str | None = None


_FILE = TypeAdapter(dict[Literal["keys"], list[Key]])


class KeysUnusable(Exception):
    """The file of keys cannot be used. The message says why, and what to do."""


class KeyFile:
    """The keys in a file, read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def find(self, secret: str) -> Key | None:
        """Return the key that a caller has shown, if it is in effect.

        Raises:
            KeysUnusable: the file is there and cannot be read.
        """
        prefix, _, rest = secret.partition("_")
        key_id, _, token = rest.partition("_")
        key = self.all().get(key_id)
        # Compared in constant time, and a key that is not there as one that is.
        is_it = hmac.compare_digest(_digest(token), key.sha256 if key else _digest(""))
        return key if key and is_it and prefix == _PREFIX and key.revoked_at is None else None

    def all(self) -> dict[str, Key]:
        """Return all keys by their ids, those that were revoked too."""
        try:
            state = self._path.stat()
            seen = (state.st_mtime_ns, state.st_ino, state.st_size)
            if seen != self._seen:
                self._keys = _read(self._path)
                self._seen = seen
        except FileNotFoundError:
            self._keys, self._seen = {}, None
        except (OSError, ValueError, KeyError) as error:  # Pydantic's is a ValueError
            raise KeysUnusable(f"the API keys in {self._path} cannot be read: {type(error).__name__}") from None
        return self._keys

    def create(self, name: str, scopes: tuple[Scope, ...], customers: tuple[str, ...] | None) -> str:
        """Make a key and return it, the only time that it can be seen."""
        token = secrets.token_urlsafe(_SECRET_BYTES)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        key = Key(f"k{secrets.token_hex(_ID_BYTES)}", name, _digest(token), scopes, customers, now)
        with self._changing() as keys:
            keys[key.id] = key
        return f"{_PREFIX}_{key.id}_{token}"

    def revoke(self, key_id: str) -> bool:
        """Revoke a key; a repeat changes nothing. Return whether there is such a key."""
        with self._changing() as keys:
            key = keys.get(key_id)
            if key is not None and key.revoked_at is None:
                keys[key_id] = replace(key, revoked_at=datetime.now(UTC).isoformat(timespec="seconds"))
        return key is not None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """Yield the keys, and write them at the end of the block. Two commands at once take turns."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            with os.fdopen(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600), "w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                keys = dict(self.all())
                before = dict(keys)
                yield keys
                if keys == before:
                    return
                new = self._path.with_name(f".{self._path.name}.new")
                text = json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=2)
                with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                    file.write(f"{text}\n")
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._path)
        except OSError as error:
            raise KeysUnusable(f"the API keys cannot be written: {error}") from None


def _read(path: Path) -> dict[str, Key]:
    return {key.id: key for key in _FILE.validate_json(path.read_bytes())["keys"]}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


# The command ------------------------------------------------------------------------------------------------

app = typer.Typer(
    help=__doc__,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _file() -> KeyFile:
    return KeyFile(load(ApiSettings).api_keys_file)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who gets it, such as a shop or a person.", show_default=False)],
    scope: Annotated[list[Scope], typer.Option(help="What it is for; repeatable.", show_default=False)],
    customer: Annotated[
        list[str] | None,
        typer.Option(help="Only for this customer's orders; repeatable.", show_default="all customers"),
    ] = None,
) -> int:
    """Make a key and print it. It cannot be shown again."""
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        raise typer.BadParameter(f"a name has 1 to {MAX_NAME_LENGTH} printable characters")
    customers = [composed(each) for each in customer or ()]
    for each in customers:
        if problem := identifier_problem(each):
            raise typer.BadParameter(f"customer {problem}")
    secret = _file().create(name.strip(), tuple(dict.fromkeys(scope)), tuple(customers) or None)
    sys.stdout.write(f"{secret}\n")
    return 0


@app.command("list")
def list_keys() -> int:
    """List the keys, without their secrets."""
    for key in _file().all().values():
        whose = "all customers" if key.customers is None else ", ".join(key.customers)
        state = f"revoked {key.revoked_at}" if key.revoked_at else "in effect"
        show(f"{key.id}  {key.name}  {' '.join(key.scopes)}  {whose}  made {key.created_at}  {state}")
    return 0


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]) -> int:
    """Revoke a key: the next request with it is refused."""
    if not _file().revoke(key_id):
        raise typer.BadParameter(f"there is no key {key_id!a}; `list` shows those that there are")
    return 0


def main() -> int:
    """Run one command and return its exit status."""
    try:
        return int(app(standalone_mode=False) or 0)
    except TyperException as error:
        error.show()  # type: ignore[attr-defined]  # every usage error has it; Typer does not export their class
        return error.exit_code
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeysUnusable as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    leave(main())
