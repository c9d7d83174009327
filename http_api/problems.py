"""Errors as RFC 9457 problems: what happened, and what to do next."""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from temporalio.service import RPCError

from client.failures import ClientError, Full, NoSuchOrder, OrderIdConflict, Refused
from domain.text import tidy
from sagafence import InvalidInput, SagaError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
_SPREAD_SECONDS = 4
"""So far apart those come back who were all turned away in one moment."""

# As RFC 9110 names them: older Pythons have the names before it, and a title does not hang on the interpreter.
_NAMES = {413: "Content Too Large", 422: "Unprocessable Content"}

_log = logging.getLogger("checkout.api")


def name_of(status: HTTPStatus) -> str:
    """Return what a status is called, the same with every Python."""
    return _NAMES.get(status, status.phrase)


def retry_milliseconds() -> int:
    """Choose after how long a caller comes back."""
    return 1000 * RETRY_SECONDS + random.randint(0, 1000 * _SPREAD_SECONDS)  # noqa: S311 - it is no secret


def retry_seconds() -> int:
    """Choose what `Retry-After` says."""
    return round(retry_milliseconds() / 1000)


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="Where it is in the body, as a JSON pointer; or the header's or parameter's name.")
    detail: str


class ProblemDocument(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = Field(description="`about:blank#` and the kind of problem: a program may rely on it.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do.")
    errors: list[Fault] | None = Field(default=None, description="What is wrong with the request, each with its place.")


class Problem(Exception):
    """A request that failed, with the answer that it gets."""

    def __init__(  # noqa: PLR0913 - what an answer may have is said by name
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})

    def response(self) -> JSONResponse:
        """Make the answer."""
        document = ProblemDocument(
            type=f"about:blank#{self.kind}",
            title=name_of(self.status),
            status=self.status,
            detail=self.detail,
            errors=list(self.errors) or None,
        )
        return JSONResponse(
            document.model_dump(exclude_none=True), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def temporal_is_away() -> Problem:
    """Temporal does not answer a request that changes something: it may have been carried out."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not-known",
        "Temporal has not answered: it is not known whether this was done. Repeat the request as it is, with the same "
        "Idempotency-Key where it has one: nothing is done twice.",
        retry_after=retry_seconds(),
    )


def stopped() -> Problem:
    """This process ends before it has answered."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not-known",
        "This server is being stopped: it is not known whether this was done. Repeat the request as it is, with the "
        "same Idempotency-Key where it has one: nothing is done twice.",
        retry_after=retry_seconds(),
        headers={"Connection": "close"},
    )


def database_is_away() -> Problem:
    """Postgres does not answer."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "database-away",
        "The database does not answer, so this cannot be read now. Orders are accepted meanwhile. Repeat the request.",
        retry_after=retry_seconds(),
    )


def invalid(*errors: Fault) -> Problem:
    """Something in the request is not what it has to be."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid",
        "The request is not valid: correct what `errors` names, and send it again.",
        errors=errors,
    )


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe for OpenAPI which problems a route answers with, beside those of all."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status.value: {"description": name_of(status), "content": content} for status in statuses}


def internal() -> Problem:
    """Something that nobody has thought of."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal",
        "This is a fault of the service, and in its log. Repeating the request is safe.",
    )


def of(error: Exception) -> Problem | None:
    """Return the answer to a request that failed of this; None for a fault of the service."""
    match error:
        case Problem():
            return error
        case ClientError():
            return _of_client(error)
        case InvalidInput():
            return invalid(Fault(pointer="", detail=tidy(str(error))))
        case RPCError():
            _log.warning("Temporal does not answer: %s", tidy(str(error)))
            return temporal_is_away()
        case SagaError():  # what `sagafence` makes of every error of Postgres
            _log.warning("the database does not answer: %s", tidy(str(error)))
            return database_is_away()
    return None


def install(app: FastAPI, routes: Iterable[Route]) -> None:
    """Make every error of an app with these routes a problem."""

    async def of_ours(_request: Request, error: Exception) -> JSONResponse:
        # A fault of the service is logged with its traceback by the server.
        return (of(error) or internal()).response()

    for kind in (Problem, ClientError, SagaError, RPCError, Exception):
        app.add_exception_handler(kind, of_ours)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> JSONResponse:
        problem = _of_http(error)
        if problem.status is HTTPStatus.METHOD_NOT_ALLOWED:
            problem.headers["Allow"] = ", ".join(_methods_at(request, routes))
        return problem.response()


def _methods_at(request: Request, routes: Iterable[Route]) -> list[str]:
    """List the methods of an address: FastAPI has a route for each of them, and knows of no other."""
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in found for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))  # see `http_api.edge`


def _of_client(error: ClientError) -> Problem:
    detail = str(error)
    match error:
        case Full():
            detail = "Too many orders wait already. Nothing was done: repeat the request with the same Idempotency-Key."
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "full", detail, retry_after=retry_seconds())
        case NoSuchOrder():
            detail = "There is no such order; GET /v1/orders lists those that there are."
            return Problem(HTTPStatus.NOT_FOUND, "no-such-order", detail)
        case OrderIdConflict():
            return Problem(HTTPStatus.CONFLICT, "order-id-conflict", detail)
        case Refused():
            return Problem(HTTPStatus.CONFLICT, "refused", detail)
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "no-answer", detail, retry_after=retry_seconds())


def _of_http(error: HTTPException) -> Problem:
    status = HTTPStatus(error.status_code)
    advice = {
        HTTPStatus.NOT_FOUND: "There is nothing at this address; /docs lists what there is.",
        HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; see Allow, and /docs.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than any request needs: split it.",
    }
    kind = name_of(status).lower().replace(" ", "-")
    return Problem(status, kind, advice.get(status, str(error.detail)), headers=error.headers)


def _of_validation(error: RequestValidationError) -> Problem:
    issues = error.errors()
    for issue in issues:
        if issue["type"] == "json_invalid":
            return Problem(
                HTTPStatus.BAD_REQUEST, "malformed", f"The body is no JSON: {issue['ctx']['error']}. Correct it."
            )
        if issue["loc"] == ("header", "Idempotency-Key"):
            return Problem(
                HTTPStatus.BAD_REQUEST,
                "idempotency-key",
                "Send a header Idempotency-Key of 1 to 255 printable ASCII characters: new for each new order, and the "
                "same for each repeat.",
            )
    return invalid(*(Fault(pointer=_place(issue["loc"]), detail=issue["msg"]) for issue in issues[:20]))


def _place(where: Sequence[str | int]) -> str:
    kind, *rest = where
    if kind == "body":
        return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in rest)
    return ".".join(map(str, rest)) or str(kind)
