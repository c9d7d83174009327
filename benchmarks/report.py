"""The results as tables in Markdown: medians of the rounds, with their least and greatest."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.actions import usd_per_million_orders
from benchmarks.counts import Counts
from benchmarks.measure import Results, Round, ratios

ROLES = ("caller", "API", "worker", "engine", "Postgres")
PRODUCT = "group"
_REFERENCES = (PRODUCT, "Restate")
"""The contenders that the others are compared with."""
_PAIRS = (("group", "activity"), ("activity", "empty activities"), ("activity", "bare"))


def tables(results: Mapping[str, Results], counts: Mapping[str, Counts]) -> str:
    """Return times, pairs, processor time and counts."""
    parts = [_times(results), _pairs(results), _processor(results), _counted(counts)]
    return "\n\n".join(part for part in parts if part)


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the processor time per order by role, as medians of the rounds."""
    roles = [role for role in ROLES if role in rounds[0].cpu_ms]
    return {role: statistics.median(one.cpu_ms[role] for one in rounds) for role in roles}


def _times(results: Mapping[str, Results]) -> str:
    others = [name for name in _REFERENCES if name in results]
    against = [f"against {name}" for name in others]
    return table(
        ["contender", "orders per second", *against, "alone, ms", "p50, ms", "p99, ms"],
        [
            [
                name,
                spread([one.per_second for one in found.loaded], ".1f"),
                *(spread(ratios(found.loaded, results[other].loaded), ".2f") for other in others),
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
    others = [name for name in _REFERENCES if name in results]
    sums = {name: sum(medians(found.loaded).values()) for name, found in results.items()}
    rows = []
    for name, found in results.items():
        used = medians(found.loaded)
        ratio = (_short(sums[name] / sums[other]) for other in others)
        rows.append([name, *(_short(used.get(role)) for role in ROLES), _short(sums[name]), *ratio])
    return table(["processor time per order, ms", *ROLES, "sum", *(f"against {name}" for name in others)], rows)


def _counted(counts: Mapping[str, Counts]) -> str:
    return table(
        [
            "per order",
            "commits on Postgres",
            "statements",
            "WAL, KB",
            "events, entries or rows kept",
            "their KB",
            "actions",
            "USD per million orders",
        ],
        [
            [
                name,
                _short(found.commits),
                _short(found.statements),
                _short(found.wal_bytes / 1000),
                _short(found.kept.events),
                _short(None if found.kept.bytes is None else found.kept.bytes / 1000),
                _short(found.kept.actions),
                _short(None if found.kept.actions is None else usd_per_million_orders(found.kept.actions)),
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


def _short(value: float | None) -> str:
    """Return a number with one decimal, or with two digits where it is below one."""
    if value is None:
        return ""
    if abs(value) < 0.001:
        return "0"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
