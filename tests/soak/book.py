"""What the soak has seen so far, and whether it was possible. No I/O."""

from collections import Counter
from dataclasses import dataclass, field

from tests.soak.model import NEVER_BEGUN, ShopModel
from tests.soak.plan import Plan, PlannedOrder

_WHY = {
    "scarce": "OutOfStock",
    "tight": "InsufficientFunds",
    "broke": "InsufficientFunds",
    "nowhere": "UndeliverableAddress",
    "unknown": "UnknownSku",
}
_FAULTS_TO_BLAME = ("DatabaseUnavailable", "TimeoutError")
"""Why any order may be refused while servers come and go: a step ran out of time."""


@dataclass
class Ended:
    status: str
    reason: str = ""
    vouched: frozenset[str] = frozenset()
    runs_lost: int = 0
    is_in_a_batch: bool = False
    """It came over HTTP and had no saga of its own."""


@dataclass
class Book:
    """Everything that was acknowledged or has ended, and the problems found in it. Bounded by the orders."""

    plan: Plan
    model: ShopModel
    acknowledged: set[int] = field(default_factory=set)
    endings: dict[int, str] = field(default_factory=dict)
    stuck: set[int] = field(default_factory=set)
    special: set[int] = field(default_factory=set)
    """Orders whose histories have an unusual shape: all of them are replayed."""
    taken: set[int] = field(default_factory=set)
    """Orders whose id went to another content, which came first: that one was booked."""
    rivals: set[int] = field(default_factory=set)
    """Orders over HTTP whose id two processes of the API have given, each to another content."""
    suspects: set[int] = field(default_factory=set)
    ways: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    unplanned: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not happen and has happened."""

    def end(self, planned: PlannedOrder, ended: Ended, *, is_cancel_accepted: bool = False) -> None:
        """Write down an ending and judge it.

        Args:
            planned: the order.
            ended: how it ended.
            is_cancel_accepted: a cancel was accepted while the order was open.
        """
        name = planned.order.order_id
        before = len(self.problems)
        if planned.number in self.endings:
            self.problems.append(f"{name} ended twice: {self.endings[planned.number]} and {ended.status}")
            return
        self.endings[planned.number] = ended.status
        self.model.end(name, planned.order.customer, planned.order.lines, ended.status, ended.vouched)
        if ended.vouched or ended.runs_lost or planned.number in self.stuck:
            self.special.add(planned.number)
        if ended.status == NEVER_BEGUN:
            if not planned.may_never_begin:
                self.problems.append(f"{name} was never begun, and nobody terminated it")
        elif ended.status == "rejected":
            self._judge_refusal(planned, ended)
        elif ended.status not in planned.endings:
            self.problems.append(f"{name} ({planned.kind}) is {ended.status}: {ended.reason}")
        if is_cancel_accepted and ended.status == "completed" and planned.can_be_recalled:
            self.problems.append(f"{name}: its cancel was accepted and lost; its label could have been cancelled")
        if len(self.problems) > before:
            self.suspects.add(planned.number)

    @property
    def unplanned_percent(self) -> float:
        return 100 * len(self.unplanned) / max(1, len(self.endings))

    def _judge_refusal(self, planned: PlannedOrder, ended: Ended) -> None:
        why = _WHY.get(planned.kind)
        if why is not None and ended.reason.startswith(why):
            return
        # Its first run was ended between the undo of the step that refused and the ending, which has the reason.
        if why is not None and planned.starts_again and ended.reason.startswith("StepAlreadyCompensated"):
            return
        line = f"{planned.order.order_id} ({planned.kind}) was refused: {ended.reason}"
        if ended.reason.startswith(_FAULTS_TO_BLAME):
            self.unplanned.append(line)
            self.special.add(planned.number)
        else:
            self.problems.append(line)
