"""What worker.py and api.py have in common as programs: what they print, how they begin, how they end."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import uvloop

from adapters.config import ConfigurationError, ServiceSettings, load
from adapters.log_setup import configure_logging
from domain.version import RELEASE

_Settings = TypeVar("_Settings", bound=ServiceSettings)


class CannotRun(Exception):
    """Something outside this process has to be fixed first. The message says what and how."""


def show(text: str) -> None:
    """Print what was asked for. A reader who has gone, as in `| head`, has what they wanted."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def run_program(
    usage: str | None,
    kind: type[_Settings],
    works: Mapping[str, Callable[[_Settings], Coroutine[Any, Any, None]]],
    texts: Mapping[str, Callable[[], str]],
) -> int:
    """Do what the command line asks for, and return the exit status: 0; 1 it cannot run; 2 wrong usage or settings.

    Args:
        usage: what `--help` prints.
        kind: the settings.
        works: what each argument is for; "" is for none.
        texts: what each argument prints, beside `--version` and `--help`.
    """
    argument = shlex.join(sys.argv[1:])
    usage = f"{usage}\nIt takes no other arguments."
    texts = {"--version": lambda: RELEASE, "--help": lambda: usage, "-h": lambda: usage, **texts}
    if argument in texts:
        show(texts[argument]())
        return 0
    if argument not in works:
        sys.stderr.write(f"{usage}\n")
        return 2
    try:
        settings = load(kind)
        configure_logging(settings.log_level, settings.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(works[argument](settings))
    except ConfigurationError as error:
        sys.stderr.write(f"The configuration is wrong:\n{error}\n")
        return 2
    except CannotRun as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
