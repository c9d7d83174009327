"""What came of a soak: one JSON document, and the same as a table for people or in Markdown."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.soak.auditor import AuditCounts
from tests.soak.book import Book
from tests.soak.injector import Injected
from tests.soak.plan import Plan
from tests.soak.verdict import Verdict, shown

_ENOUGH_TO_COUNT = 10


@dataclass
class Report:
    plan: Plan
    book: Book
    injected: list[Injected]
    audit: AuditCounts
    seconds: float
    windows: list[int]
    sizes: dict[str, int]
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """What the parts took of the machine while orders were open, as far as their processes were not restarted."""
    verdict: Verdict | None = None
    failure: str | None = None
    problems: list[str] = field(default_factory=list)
    """What else is wrong: faults that were not seen, orders that were refused for no planned reason."""

    def judge(self, *, unplanned_percent: float) -> None:
        planned = Counter(fault.kind for fault in self.plan.faults())
        observed = self.observed()
        for kind, count in planned.items():
            if not observed[kind]:
                self.problems.append(f"none of {count} faults {kind} was observed")
        if observed.total() < 0.9 * planned.total():
            self.problems.append(f"{observed.total()} of {planned.total()} faults were observed")
        met = sum(one.batches > 0 for one in self.injected)
        if planned.total() >= _ENOUGH_TO_COUNT and met < 0.5 * self.plan.batched * planned.total():
            self.problems.append(f"{met} of {planned.total()} faults met a batch")
        if self.book.unplanned_percent > unplanned_percent:
            self.problems.append(
                f"{self.book.unplanned_percent:.1f} % of the orders were refused for no planned reason; "
                f"{unplanned_percent:g} % may be: {self.book.unplanned[:5]}"
            )

    def observed(self) -> Counter[str]:
        return Counter(one.fault.kind for one in self.injected if one.evidence)

    @property
    def is_clean(self) -> bool:
        return self.failure is None and not self.problems and self.verdict is not None and self.verdict.is_clean

    def document(self) -> dict[str, Any]:
        injected, observed = Counter(one.fault.kind for one in self.injected), self.observed()
        ended = len(self.book.endings)
        return {
            "seed": self.plan.seed,
            "orders": self.plan.orders,
            "holds": self.is_clean,
            "failure": self.failure,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "orders_per_second": round(ended / self.seconds, 1) if self.seconds else 0.0,
            "ways": dict(self.book.ways.most_common()),
            "outcomes": dict(Counter(self.book.endings.values()).most_common()),
            "refused_by_faults": len(self.book.unplanned),
            "stuck_on_purpose": len(self.book.stuck),
            "acts": dict(sorted(self.book.counts.items())),
            "faults": {kind: {"injected": injected[kind], "observed": observed[kind]} for kind in sorted(injected)},
            "faults_injected": injected.total(),
            "faults_observed": observed.total(),
            "faults_that_met_a_batch": sum(one.batches > 0 for one in self.injected),
            "snapshots": self.audit.snapshots,
            "snapshots_whole": self.audit.whole,
            "snapshots_per_second": round(self.audit.snapshots / self.seconds, 2) if self.seconds else 0.0,
            "snapshots_put_off": self.audit.waited,
            "longest_without_a_snapshot": round(self.audit.longest_gap, 1),
            "slowest_whole_snapshot": round(self.audit.slowest_whole, 3),
            "slowest_partial_snapshot": round(self.audit.slowest_partial, 3),
            "slowest_checks": dict(sorted(self.audit.slowest.items(), key=lambda one: -one[1])[:5]),
            "seconds_of_checks": {name: round(spent, 2) for name, spent in sorted(self.audit.spent.items())},
            "cpu_seconds": self.cpu_seconds,
            "ended_per_window": self.windows,
            "values_compared_with_the_model": self.verdict.picture_size if self.verdict else 0,
            "outcomes_in_reports_compared": self.verdict.outcomes_compared if self.verdict else 0,
            "histories_replayed": self.verdict.replayed if self.verdict else 0,
            "checked_at_rest": shown(self.verdict.problems) if self.verdict else {},
            "bytes_on_disk": self.sizes,
        }

    def rows(self) -> list[tuple[str, str]]:
        found = self.document()
        outcomes = ", ".join(f"{count} {status}" for status, count in found["outcomes"].items())
        rows = [
            ("seed", str(found["seed"])),
            ("orders", f"{found['orders']}: {outcomes or 'none has ended'}"),
            ("by way", ", ".join(f"{count} {way}" for way, count in found["ways"].items())),
            ("time", f"{found['seconds']} s, {found['orders_per_second']} orders/s"),
            ("refused because of faults", str(found["refused_by_faults"])),
            ("stuck on purpose, then settled", str(found["stuck_on_purpose"])),
            ("faults observed / injected", f"{found['faults_observed']} / {found['faults_injected']}"),
            ("faults that met a batch", str(found["faults_that_met_a_batch"])),
        ]
        rows += [(f"- {kind}", f"{of['observed']} / {of['injected']}") for kind, of in found["faults"].items()]
        rows += [
            ("live snapshots", f"{found['snapshots']}, {found['snapshots_whole']} of them whole"),
            (
                "slowest snapshot",
                f"{found['slowest_whole_snapshot']} s whole, {found['slowest_partial_snapshot']} s partial",
            ),
            ("values equal to the model's", str(found["values_compared_with_the_model"])),
            ("outcomes in batches' reports", str(found["outcomes_in_reports_compared"])),
            ("histories replayed", str(found["histories_replayed"])),
            *((f"- {name}", str(count)) for name, count in found["acts"].items()),
        ]
        rows += [
            (claim, held if isinstance(held, str) else f"{held['problems']} PROBLEMS, first: {held['first'][0]}")
            for claim, held in found["checked_at_rest"].items()
        ]
        rows += [("PROBLEM", problem) for problem in self.problems]
        if self.failure:
            rows.append(("BROKEN OFF", self.failure))
        return [*rows, ("holds", "yes" if self.is_clean else "NO")]

    def table(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def markdown(self) -> str:
        lines = [f"| {name.removeprefix('- ')} | {value} |" for name, value in self.rows()]
        return "\n".join(["| | |", "|---|---|", *lines])
