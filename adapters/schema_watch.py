"""Whether the database still has what the code relies on. A guard that is gone makes no statement fail."""

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import schema

_log = logging.getLogger("checkout.schema")

LOOK_EVERY_SECONDS = 60.0
_TELL_AGAIN_AFTER_LOOKS = 10


async def follow(engine: AsyncEngine) -> None:
    """Log an error where the database lacks something since the start, at once and again while that lasts.

    Until cancelled. The worker goes on: what a statement misses makes its order wait, and the orders of a database
    without a guard are no safer with no worker.
    """
    known: list[str] = []
    looks = 0
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        try:
            lacks = await schema.problems_of(engine, "steps")
        except (SQLAlchemyError, OSError, TimeoutError):
            continue  # the database is away, or lets nobody in: whoever works on it complains of that
        if lacks and (lacks != known or looks % _TELL_AGAIN_AFTER_LOOKS == 0):
            _log.error(
                "the database lacks %s; see docs/operations.md, Running setup.sql again",
                ", ".join(lacks),
                extra={"action": "schema_lacking"},
            )
        elif known and not lacks:
            _log.info("the database has all that the code relies on again", extra={"action": "schema_whole"})
        looks = looks + 1 if lacks == known else 1
        known = lacks
