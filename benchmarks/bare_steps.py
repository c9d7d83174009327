"""The three steps of an order against Postgres alone: the activities' own statements, driven by pgbench.

pgbench takes a tenth of the processor time that a driver in Python takes, so what is measured is the database: its
locks, and its commits. Each client is one connection that does one order after the other.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from activities.inventory import _RESERVE
from activities.payments import _CHARGE
from activities.shipping import _SHIP
from benchmarks.crowd import SIZE
from benchmarks.endings import WentWrong
from devstack.stack import DATABASE, ROLE, DevStack

_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
_RATE = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
# pgbench gives up at the first timeout, where a worker tries again.
_NO_LIMITS = "-c lock_timeout=0 -c statement_timeout=0 -c transaction_timeout=0"
_ORDER = "('steps-' || CAST(:run AS text) || '-' || CAST(:client_id AS text) || '-' || CAST(:n AS text))"
_VALUES: Mapping[str, str] = {
    "order_id": _ORDER,
    "saga_id": _ORDER,
    "fingerprint": f"md5({_ORDER})",
    "customer": "('crowd-' || lpad(CAST(:customer AS text), 4, '0'))",
    "skus": "ARRAY['hot-' || lpad(CAST(:sku AS text), 4, '0')]",
    "quantities": "ARRAY[1]",
    "run": "'steps'",
}


def run(stack: DevStack, *, number: int, skus: int, connections: int, orders: int) -> float:
    """Do orders of one line of the first so many SKUs, and give how many a second.

    Args:
        stack: with the shop of `benchmarks.crowd`.
        number: of the run: ids of two runs never meet.
        skus: among how many the orders are spread.
        connections: at once.
        orders: in all, shared between the connections.

    Raises:
        WentWrong: pgbench gave up, or a step was refused.
    """
    with tempfile.TemporaryDirectory(prefix="checkout-steps-") as folder:
        file = Path(folder) / "order.sql"
        file.write_text(_script(skus), encoding="utf-8")
        done = subprocess.run(
            [
                str(stack.postgres.bin("pgbench")),
                *("--host", "127.0.0.1", "--port", str(stack.ports.postgres), "--username", ROLE),
                *("--no-vacuum", "--protocol", "prepared", "--file", str(file)),
                *("--client", str(connections), "--jobs", "2", "--transactions", str(-(-orders // connections))),
                *("--define", f"run={number}", "--define", "n=0", "--random-seed", str(number)),
                DATABASE,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PGOPTIONS": _NO_LIMITS},
        )
    if done.returncode != 0 or (rate := _RATE.search(done.stdout)) is None:
        raise WentWrong(f"pgbench ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return float(rate[1])


def _script(skus: int) -> str:
    draws = f"\\set n :n + 1\n\\set customer random(1, {SIZE})\n\\set sku random(1, {skus})\n"
    steps = (("reserve", _RESERVE), ("pay", _CHARGE), ("ship", _SHIP))
    return draws + "\n".join(_statement(step, found.text) for step, found in steps)


def _statement(step: str, statement: str) -> str:
    """Put expressions of pgbench's variables where the activity binds its values."""
    values = {**_VALUES, "step": f"'{step}'"}
    return _PARAMETER.sub(lambda found: values[found[1]], statement).strip() + ";\n"
