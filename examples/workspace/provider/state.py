"""What the two providers remember, in an SQLite file: effects, and the first answer that was given under each key.

An effect and the answer that tells of it are one transaction, so a provider that is killed has both or neither. That a
key is *in progress* is known in memory alone: whatever was in progress when the process died has had no effect.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    path TEXT NOT NULL, key TEXT NOT NULL, content_hash TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (path, key));
CREATE TABLE IF NOT EXISTS voids (key TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS tenants (
    id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, subdomain TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS invoices (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, reference TEXT NOT NULL, plan TEXT NOT NULL,
    cents INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS mails (
    id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, template TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS tenants_by_reference ON tenants (reference);
CREATE INDEX IF NOT EXISTS invoices_by_reference ON invoices (reference);
CREATE INDEX IF NOT EXISTS invoices_by_key ON invoices (key);
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int
    body: Any
    replayed: bool = False
    """It was given before, under the same key; nothing happened this time."""


def refuse(status: int, error: str, message: str, **more: Any) -> Answer:
    """Build an answer that says no: `error` is for programs, `message` for people."""
    return Answer(status, {"error": error, "message": message, **more})


def in_progress(key: str) -> Answer:
    """Build the answer for a key under which another request is at work."""
    return refuse(409, "in_progress", f"another request is at work under the key {key}")


class State:
    """The durable state of both providers. Safe to use from many threads."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._in_progress: set[tuple[str, str]] = set()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run what is inside alone, and commit it, or roll it back when it fails."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database

    def once(
        self,
        path: str,
        key: str,
        content: bytes,
        *,
        work: Callable[[], None],
        act: Callable[[sqlite3.Connection], Answer],
    ) -> Answer:
        """Answer the first request under a key by acting, and every repeat by what was stored then.

        Args:
            path: whose keys they are.
            key: as the request has it.
            content: of the request. Under a used key only the same is answered.
            work: takes its time before the effect; the key is in progress meanwhile.
            act: has the effect, in the transaction that stores its answer. Where it raises, the key stays free.
        """
        content_hash = sha256(content).hexdigest()
        with self.transaction() as database:
            if stored := _stored(database, path, key, content_hash):
                return stored
            if (path, key) in self._in_progress:
                return in_progress(key)
            self._in_progress.add((path, key))
        try:
            work()
            with self.transaction() as database:
                answer = act(database)
                database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                    (path, key, content_hash, answer.status, json.dumps(answer.body)),
                )
                return answer
        finally:
            self._in_progress.discard((path, key))

    def is_in_progress(self, path: str, key: str) -> bool:
        """Say whether a request is at work under the key; ask within a transaction."""
        return (path, key) in self._in_progress

    def forget_keys(self, path: str | None, key: str | None) -> int:
        """Delete stored answers, as a provider does whose keys expire; effects and voids stay. Return how many."""
        with self.transaction() as database:
            forgotten = database.execute(
                "DELETE FROM answers WHERE path = coalesce(?, path) AND key = coalesce(?, key)", (path, key)
            )
            return forgotten.rowcount

    def books(self) -> Row:
        """List every effect there is, and how often each reference was charged."""
        with self.transaction() as database:
            charges = rows(database, "SELECT reference, count(*) AS n FROM invoices GROUP BY reference")
            return {
                "tenants": rows(database, "SELECT * FROM tenants ORDER BY id"),
                "invoices": rows(database, "SELECT * FROM invoices ORDER BY id"),
                "mails": rows(database, "SELECT * FROM mails ORDER BY id"),
                "voids": [row["key"] for row in rows(database, "SELECT key FROM voids ORDER BY key")],
                "in_progress": sorted(key for _, key in self._in_progress),
                "charges": {row["reference"]: row["n"] for row in charges},
            }


def rows(database: sqlite3.Connection, sql: str, *values: Any) -> list[Row]:
    """Run a query."""
    return [dict(row) for row in database.execute(sql, values)]


def _stored(database: sqlite3.Connection, path: str, key: str, content_hash: str) -> Answer | None:
    for row in rows(database, "SELECT * FROM answers WHERE path = ? AND key = ?", path, key):
        if row["content_hash"] != content_hash:
            return refuse(422, "key_reused", f"the key {key} was used with other content")
        return Answer(row["status"], json.loads(row["body"]), replayed=True)
    return None
