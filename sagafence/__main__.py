"""`python -m sagafence schema` prints the SQL that makes the library's tables.

Exit status: 0 the SQL is printed; 1 the output could not be written, or its reader is gone; 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from sagafence.tables import script

_EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sagafence", description="Sagas on Temporal.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser(
        "schema",
        help="print the SQL that makes the tables, or adds to them what this release needs",
        description="Print the SQL that makes the tables, or adds to them what this release needs; safe to repeat.",
        epilog="python -m sagafence schema | psql -d DATABASE",
    )
    parser.parse_args(arguments)
    return _print(script())


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
