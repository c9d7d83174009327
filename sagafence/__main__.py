"""`python -m sagafence schema` prints the SQL that makes the library's tables; `resolve-late` records a person's word.

Exit status: 0 the SQL is printed, or the word is recorded; 1 it could not be, and standard error says why; 2 wrong
usage; 130 interrupted.
"""

import argparse
import asyncio
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from sagafence.errors import SagaError
from sagafence.provider import Verdict
from sagafence.tables import script

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130
_NEXT = "Where the saga is stuck at it, send it the update retry."
_VERDICTS = [verdict.value for verdict in (Verdict.UNDONE_BY_HAND, Verdict.NEVER)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sagafence", description="Sagas on Temporal.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", title="commands", required=True, metavar="COMMAND")
    commands.add_parser(
        "schema",
        help="print the SQL that makes the tables, or adds to them what this release needs",
        description="Print the SQL that makes the tables, or adds to them what this release needs; safe to repeat.",
        epilog="python -m sagafence schema | psql -d DATABASE",
    )
    late = commands.add_parser(
        "resolve-late",
        help="record what a person found of a success that was heard after its step was settled (came_late)",
        description="Record what a person found of a success that was heard after its step was settled. "
        "Calls no provider; safe to repeat. From then on retention may delete the saga's rows.",
        epilog="What is asked: SELECT saga_id, step, key FROM external_steps WHERE question = 'came_late'",
    )
    late.add_argument("saga_id", metavar="SAGA_ID")
    late.add_argument("step", metavar="STEP")
    late.add_argument("verdict", metavar="VERDICT", choices=_VERDICTS, help=" or ".join(_VERDICTS))
    late.add_argument("--who", required=True, help="who says it")
    late.add_argument("--why", required=True, help="what they saw")
    late.add_argument(
        "--database", metavar="URL", help="postgresql://...; or PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE"
    )
    given = parser.parse_args(arguments)
    if given.command == "schema":
        return _print(script())
    logging.getLogger("sagafence").addHandler(logging.NullHandler())  # the failure says it, once
    try:
        asyncio.run(_resolve_late(given))
    except ImportError as error:
        sys.stderr.write(f"not recorded: {error}. pip install 'sagafence[postgres]'\n")
        return _EXIT_FAILED
    except ValueError:  # its text may have a part of a password
        sys.stderr.write("not recorded: the URL of --database, or a variable PG..., cannot be read\n")
        return _EXIT_FAILED
    except SagaError as error:
        sys.stderr.write(f"not recorded: {error}\n")
        return _EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: it may be recorded; say it again, which is safe\n")
        return _EXIT_INTERRUPTED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    _print(f"{given.step} of {given.saga_id}: {given.verdict}, says {given.who}. {_NEXT}\n")
    return 0  # recorded, whoever hears of it


async def _resolve_late(given: argparse.Namespace) -> None:
    import asyncpg  # noqa: PLC0415 - of the extra postgres, without which `schema` works
    from sqlalchemy import NullPool  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    from sagafence.external_steps.people import resolve_late  # noqa: PLC0415

    # The driver reads URL and variables as libpq does; SQLAlchemy would not take a `?sslmode=`.
    url = given.database and given.database.replace("postgresql+asyncpg:", "postgresql:", 1)
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool
    )
    await resolve_late(engine, given.saga_id, given.step, Verdict(given.verdict), who=given.who, why=given.why)


def _print(output: str) -> int:
    try:
        sys.stdout.write(output)
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has gone, as in `| head`
    except (OSError, AttributeError) as error:  # a full disk; or it was closed, and is None
        sys.stderr.write(f"the output could not be written: {error}\n")
    else:
        return 0
    if sys.stdout is not None:
        # Python flushes once more when it exits, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _EXIT_FAILED


def _version() -> str:
    try:
        return version("sagafence")
    except PackageNotFoundError:  # run from its sources
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
