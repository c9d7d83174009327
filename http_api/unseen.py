"""What the server answers to a request that no app has seen: a problem, as every other error is."""

from http import HTTPStatus

from starlette.responses import Response

from http_api.edge import HEADERS
from http_api.problems import Problem, retry_seconds


def too_slow(seconds: float) -> Problem:
    """The line and the headers do not come."""
    return Problem(
        HTTPStatus.REQUEST_TIMEOUT,
        "headers-too-slow",
        f"The request's line and headers did not come within {seconds:g} s. Repeat the request.",
    )


def too_long(most_bytes: int) -> Problem:
    """They do not end."""
    return Problem(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers-too-large",
        f"The request's line and headers have more than {most_bytes} bytes, which no request needs: send fewer.",
    )


def no_http() -> Problem:
    """What was sent cannot be read."""
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "no-http",
        "What was sent is no HTTP/1.1 request: correct its line and headers. This port takes no TLS and no HTTP/2.",
    )


def no_host() -> Problem:
    """It names no host, or several: something on the way may take it for another's."""
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "no-host",
        "A request names its host once: send one Host header. Nothing was done.",
    )


def too_many(most: int) -> Problem:
    """So many are connected already."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too-many-connections",
        f"This process has {most} open connections. Nothing was done: repeat the request.",
        retry_after=retry_seconds(),
    )


def last_answer(problem: Problem) -> Response:
    """Answer such a request, and end its connection."""
    response = problem.response()
    response.headers.update({**HEADERS, "Cache-Control": "no-store", "Connection": "close"})
    return response
