"""What the two providers offer: a CRM with tenants and mails, and a billing service.

POST   /tenants             {"reference", "subdomain"}   201 {"id", …} · 422 forbidden_subdomain                (key)
DELETE /tenants/{id}                                     204, also again · 404 there never was one
GET    /tenants?reference=                               200 [{"id", …}] those that are not deleted
POST   /mails               {"reference", "template"}    201 {"id", …} · 422 unknown_template                   (key)
POST   /invoices            {"reference", "plan"}        201 {"id", "cents", …} · 402 not_billable · 409 voided (key)
POST   /invoices/{key}/void                              200: nothing was billed under the key, nor will be
                                                         409 already_billed, with the "invoice" · 409 in_progress
GET    /invoices?reference=                              200 [{"id", …}]
GET    /books                                            200: every effect, for comparing
POST   /admin/forget-keys   {"path"?, "key"?}            200 {"forgotten": n}: stored answers are gone

Keys come in the header Idempotency-Key. The first answer under a key is stored, whatever it is, and given again to
every repeat, with the header Idempotent-Replayed: true. 409 in_progress while the first is at work, 422 key_reused when
the key comes with other content. 400 is about the request alone, and is not stored. A void blocks its key for ever.
"""

import json
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from examples.workspace.provider.state import Answer, State, in_progress, refuse, rows

_FORBIDDEN_SUBDOMAINS = {"admin", "www"}
_CENTS = {"team": 4_900, "company": 49_000}
_TEMPLATES = {"welcome"}


class Malformed(Exception):
    """The request cannot be understood; nothing of it is stored."""


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    target: str
    key: str | None
    content: bytes

    def fields(self) -> dict[str, Any]:
        """Read the body."""
        try:
            fields = json.loads(self.content)
        except ValueError as error:
            raise Malformed(f"the body is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise Malformed("the body is no JSON object")
        return fields

    def text(self, name: str) -> str:
        """Read one field."""
        value = self.fields().get(name)
        if not isinstance(value, str) or not value:
            raise Malformed(f"{name} is missing or no text")
        return value

    def reference(self) -> str:
        """Read which effects are asked for."""
        match parse_qs(urlsplit(self.target).query).get("reference"):
            case [reference]:
                return reference
        raise Malformed("a reference is needed")


class Api:
    """Answers requests. Safe to use from many threads.

    Args:
        state: what is remembered.
        takes: how many seconds it works before a request with a key has its effect.
    """

    def __init__(self, state: State, takes: float) -> None:
        self._state = state
        self._takes = takes
        self._routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", "/tenants", self._once(_create_tenant)),
            ("DELETE", r"/tenants/(\d+)", self._delete_tenant),
            ("GET", "/tenants", self._list("SELECT * FROM tenants WHERE reference = ? AND NOT deleted")),
            ("POST", "/mails", self._once(_send_mail)),
            ("POST", "/invoices", self._once(_bill)),
            ("POST", "/invoices/(.+)/void", self._void),
            ("GET", "/invoices", self._list("SELECT * FROM invoices WHERE reference = ?")),
            ("GET", "/books", self._books),
            ("POST", "/admin/forget-keys", self._forget_keys),
        ]

    def answer(self, request: Request) -> Answer:
        """Do what the request asks for."""
        path = urlsplit(request.target).path
        for method, pattern, act in self._routes:
            if method == request.method and (found := re.fullmatch(pattern, path)):
                try:
                    return act(request, *map(unquote, found.groups()))
                except Malformed as error:
                    return refuse(400, "malformed", str(error))
        return refuse(404, "not_found", f"there is no {request.method} {path}")

    def _once(self, act: Callable[[sqlite3.Connection, Request], Answer]) -> Callable[[Request], Answer]:
        def acting(request: Request) -> Answer:
            if not request.key:
                raise Malformed("an Idempotency-Key is needed")
            return self._state.once(
                urlsplit(request.target).path,
                request.key,
                request.content,
                work=lambda: time.sleep(self._takes),
                act=lambda database: act(database, request),
            )

        return acting

    def _list(self, sql: str) -> Callable[[Request], Answer]:
        def listing(request: Request) -> Answer:
            with self._state.transaction() as database:
                return Answer(200, rows(database, sql, request.reference()))

        return listing

    def _delete_tenant(self, _request: Request, tenant_id: str) -> Answer:
        with self._state.transaction() as database:
            if rows(database, "UPDATE tenants SET deleted = 1 WHERE id = ? RETURNING id", tenant_id):
                return Answer(204, None)
            return refuse(404, "not_found", f"there never was a tenant {tenant_id}")

    def _void(self, _request: Request, key: str) -> Answer:
        with self._state.transaction() as database:
            if self._state.is_in_progress("/invoices", key):
                return in_progress(key)
            for invoice in rows(database, "SELECT * FROM invoices WHERE key = ?", key):
                return refuse(409, "already_billed", f"the key {key} was billed", invoice=invoice)
            rows(database, "INSERT INTO voids VALUES (?) ON CONFLICT DO NOTHING", key)
            return Answer(200, {"key": key, "voided": True})

    def _books(self, _request: Request) -> Answer:
        return Answer(200, self._state.books())

    def _forget_keys(self, request: Request) -> Answer:
        which = request.fields()
        return Answer(200, {"forgotten": self._state.forget_keys(which.get("path"), which.get("key"))})


def _create_tenant(database: sqlite3.Connection, request: Request) -> Answer:
    reference, subdomain = request.text("reference"), request.text("subdomain")
    if subdomain in _FORBIDDEN_SUBDOMAINS:
        return refuse(422, "forbidden_subdomain", f"{subdomain} cannot be had")
    insert = "INSERT INTO tenants (reference, subdomain) VALUES (?, ?) RETURNING id, reference, subdomain"
    [tenant] = rows(database, insert, reference, subdomain)
    return Answer(201, tenant)


def _send_mail(database: sqlite3.Connection, request: Request) -> Answer:
    reference, template = request.text("reference"), request.text("template")
    if template not in _TEMPLATES:
        return refuse(422, "unknown_template", f"there is no template {template}")
    [mail] = rows(database, "INSERT INTO mails (reference, template) VALUES (?, ?) RETURNING *", reference, template)
    return Answer(201, mail)


def _bill(database: sqlite3.Connection, request: Request) -> Answer:
    reference, plan = request.text("reference"), request.text("plan")
    if rows(database, "SELECT 1 FROM voids WHERE key = ?", request.key):
        return refuse(409, "voided", f"the key {request.key} was voided")
    if plan not in _CENTS:
        return refuse(402, "not_billable", f"the plan {plan} cannot be billed")
    insert = "INSERT INTO invoices (key, reference, plan, cents) VALUES (?, ?, ?, ?) RETURNING *"
    [invoice] = rows(database, insert, request.key, reference, plan, _CENTS[plan])
    return Answer(201, invoice)
