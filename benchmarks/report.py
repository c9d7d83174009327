"""The results as tables in Markdown: medians of the rounds, with their least and greatest."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.counts import Counts
from benchmarks.measure import Results, Round, ratios

ROLES = ("caller", "worker", "engine", "Postgres")
PRODUCT = "local-first"
"""The contender that the others are compared with."""
_PAIRS = (
    ("local-first", "idle"),
    ("fast, eager", "idle, eager"),
    ("local-first", "activity"),
    ("activity", "empty activities"),
    ("activity", "bare"),
)


def tables(results: Mapping[str, Results], counts: Mapping[str, Counts]) -> str:
    """Return times, pairs, processor time and counts."""
    parts = [_times(results), _pairs(results), _processor(results), _counted(counts)]
    return "\n\n".join(part for part in parts if part)


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the processor time per order by role, as medians of the rounds."""
    roles = [role for role in ROLES if role in rounds[0].cpu_ms]
    return {role: statistics.median(one.cpu_ms[role] for one in rounds) for role in roles}


def _times(results: Mapping[str, Results]) -> str:
    return table(
        ["contender", "orders per second", f"against {PRODUCT}", "alone, ms", "p50, ms", "p99, ms"],
        [
            [
                name,
                spread([one.per_second for one in found.loaded], ".1f"),
                spread(ratios(found.loaded, results[PRODUCT].loaded), ".2f") if PRODUCT in results else "",
                spread([one.p50_ms for one in found.alone], ".1f"),
                f"{statistics.median(one.p50_ms for one in found.loaded):.0f}",
                f"{statistics.median(one.p99_ms for one in found.loaded):.0f}",
            ]
            for name, found in results.items()
        ],
    )


def _pairs(results: Mapping[str, Results]) -> str:
    pairs = [
        f"{one} against {other} {spread(ratios(results[one].loaded, results[other].loaded), '.2f')}"
        for one, other in _PAIRS
        if one in results and other in results
    ]
    return f"Throughput, round by round: {'; '.join(pairs)}." if pairs else ""


def _processor(results: Mapping[str, Results]) -> str:
    rows = []
    for name, found in results.items():
        used = medians(found.loaded)
        rows.append([name, *(_one_decimal(used.get(role)) for role in ROLES), _one_decimal(sum(used.values()))])
    return table(["processor time per order, ms", *ROLES, "sum"], rows)


def _counted(counts: Mapping[str, Counts]) -> str:
    return table(
        ["per order", "commits on Postgres", "statements", "WAL, KB", "events, entries or rows kept", "their KB"],
        [
            [
                name,
                _one_decimal(found.commits),
                _one_decimal(found.statements),
                _one_decimal(found.wal_bytes / 1000),
                _one_decimal(found.kept.events),
                _one_decimal(None if found.kept.bytes is None else found.kept.bytes / 1000),
            ]
            for name, found in counts.items()
        ],
    )


def spread(values: Sequence[float], form: str) -> str:
    """Return median, least and greatest in a format."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _one_decimal(value: float | None) -> str:
    if value is None:
        return ""
    return f"{abs(value) if abs(value) < 0.05 else value:.1f}"
