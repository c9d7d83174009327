"""worker.py, and of some orders Postgres refuses what a step and its undo ask for, as long as a file is there.

    python -m tests.soak.worker

The files are in the folder that SOAK_REFUSED names, one for an order and a step. A repeat of a step that is done only
reads, so nothing within Postgres could refuse it for some orders alone, and the step's own time is minutes.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from temporalio import activity

import worker
from adapters.process_exit import leave
from domain.bulk import StepInput
from domain.model import CheckoutInput, UndoInput
from sagafence import UNDO_ATTEMPTS_WHEN_REFUSED, DatabaseRefusedStatement
from tests.attempts import AroundAttempts, Run

REFUSED = "SOAK_REFUSED"
_STEPS = {
    "reserve_inventory": ("reserve",),
    "charge_payment": ("pay",),
    "ship_order": ("ship",),
    "check_out_orders": ("reserve", "pay", "ship"),
    "release_inventory": ("reserve",),
    "refund_payment": ("pay",),
    "cancel_shipment": ("ship",),
}


def refusal(folder: Path, order_id: str, step: str) -> Path:
    return folder / f"{order_id}+{step}"


class Refusing(AroundAttempts):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:
        steps = _STEPS.get(info.activity_type, ())
        orders = orders_of(arguments[0]) if steps else []
        if any(refusal(self._folder, order_id, step).exists() for order_id in orders for step in steps):
            is_last = info.attempt >= UNDO_ATTEMPTS_WHEN_REFUSED
            raise DatabaseRefusedStatement("Postgres refused: on purpose (P0001)", non_retryable=is_last)
        return await run()


def orders_of(asked: Any) -> list[str]:
    match asked:
        case CheckoutInput():
            return [asked.order_id]
        case UndoInput():
            return [asked.order.order_id]
        case StepInput():
            return [str(packed["order_id"]) for packed in asked.orders]
    raise TypeError(f"an activity of a step was asked for {asked!r}")


def main() -> int:
    worker.build_worker = partial(worker.build_worker, interceptors=(Refusing(Path(os.environ[REFUSED])),))
    return worker.main()


if __name__ == "__main__":
    sys.argv[1:] = []
    leave(main())
