"""The results as Markdown: three tables and the paragraph that says where they come from."""

import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks.counts import Counts
from benchmarks.measure import Results, Round, ratios

ROLES = ("caller", "worker", "engine", "Postgres")
PRODUCT = "fast"
"""The contender that the others are compared with."""
_PAIRS = (
    ("fast", "idle"),
    ("fast, eager", "idle, eager"),
    ("fast", "classic"),
    ("classic", "empty activities"),
    ("classic", "bare"),
)


def tables(results: Mapping[str, Results], counts: Mapping[str, Counts]) -> str:
    """Give all of it: times, pairs, processor time, counts. Medians of the rounds, and their least and greatest."""
    parts = [_times(results), _pairs(results), _processor(results)]
    if counts:
        parts.append(_counted(counts))
    return "\n\n".join(part for part in parts if part)


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Give the processor time per order by role, as medians of the rounds."""
    roles = [role for role in ROLES if role in rounds[0].cpu_ms]
    return {role: statistics.median(one.cpu_ms[role] for one in rounds) for role in roles}


def _times(results: Mapping[str, Results]) -> str:
    rows = []
    for name, found in results.items():
        rows.append(
            [
                name,
                spread([one.per_second for one in found.loaded], ".1f"),
                spread(ratios(found.loaded, results[PRODUCT].loaded), ".2f") if PRODUCT in results else "",
                spread([one.p50_ms for one in found.alone], ".1f"),
                _whole(statistics.median(one.p50_ms for one in found.loaded)),
                _whole(statistics.median(one.p99_ms for one in found.loaded)),
            ]
        )
    return table(
        ["contender", "orders per second", f"against {PRODUCT}", "alone, ms", "p50, ms", "p99, ms"],
        rows,
    )


def _pairs(results: Mapping[str, Results]) -> str:
    told = [
        f"{one} against {other} {spread(ratios(results[one].loaded, results[other].loaded), '.2f')}"
        for one, other in _PAIRS
        if one in results and other in results
    ]
    return f"Throughput, round by round: {'; '.join(told)}." if told else ""


def _processor(results: Mapping[str, Results]) -> str:
    rows = []
    for name, found in results.items():
        used = medians(found.loaded)
        shown = [_one_decimal(used[role]) if role in used else "" for role in ROLES]
        rows.append([name, *shown, _one_decimal(sum(used.values()))])
    return table(["processor time per order, ms", *ROLES, "sum"], rows)


def _counted(counts: Mapping[str, Counts]) -> str:
    rows = []
    for name, found in counts.items():
        events, size = found.kept.events, found.kept.bytes
        rows.append(
            [
                name,
                _one_decimal(found.commits),
                _one_decimal(found.statements),
                _one_decimal(found.wal_bytes / 1000),
                "" if events is None else _one_decimal(events),
                "" if size is None else _one_decimal(size / 1000),
            ]
        )
    return table(
        ["per order", "commits on Postgres", "statements", "WAL, KB", "events, entries or rows kept", "their KB"], rows
    )


def spread(values: Sequence[float], form: str) -> str:
    """Give median, least and greatest in a format."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _one_decimal(value: float) -> str:
    return f"{abs(value) if abs(value) < 0.05 else value:.1f}"


def verdict(what: str, is_met: bool) -> str:
    """Say whether a target was met."""
    return f"{what}, {'met' if is_met else 'MISSED'}"


def tell(what: str) -> None:
    """Say how far we are, beside the results."""
    print(what, file=sys.stderr, flush=True)
