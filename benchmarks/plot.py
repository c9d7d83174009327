"""The results as a picture: throughput, latency alone, and where the processor time of an order goes."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.measure import Results
from benchmarks.report import PRODUCT, ROLES, medians

_COLOURS = {"caller": "#9aa5b1", "API": "#7fb3d5", "worker": "#2f6f9f", "engine": "#d98c3f", "Postgres": "#5b8c5a"}
_PRODUCT, _OTHERS = "#2f6f9f", "#b8c4cf"


def draw(results: Mapping[str, Results], caption: str, path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    # Text stays text: it can be searched and read aloud.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "checkout", "font.family": "sans-serif"})
    names = list(results)[::-1]  # the first of the table on top
    figure = Figure(figsize=(11, 0.42 * len(names) + 1.6), layout="constrained", facecolor="white")
    throughput, alone, processor = figure.subplots(1, 3, sharey=True)
    _bars(throughput, {name: [one.per_second for one in results[name].loaded] for name in names})
    throughput.set_title("orders per second under load")
    _bars(alone, {name: [one.p50_ms for one in results[name].alone] for name in names})
    alone.set_title("latency of an order alone, ms")
    _stacks(processor, [medians(results[name].loaded) for name in names])
    processor.set_title("processor time per order, ms")
    for axes in (throughput, alone, processor):
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _bars(axes: Any, values: Mapping[str, list[float]]) -> None:
    """Draw medians as bars, with a line from the least to the greatest round."""
    for place, (name, found) in enumerate(values.items()):
        middle, most = statistics.median(found), max(found)
        axes.barh(place, middle, color=_PRODUCT if name in {PRODUCT, "activity"} else _OTHERS)
        axes.plot([min(found), most], [place, place], color="#333333", linewidth=1)
        text = f"{middle:.0f}"
        axes.annotate(text, (most, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(values)), list(values))
    axes.margins(x=0.15)


def _stacks(axes: Any, values: Sequence[Mapping[str, float]]) -> None:
    """Draw the shares of the roles side by side."""
    for place, used in enumerate(values):
        begun = 0.0
        for role, each in used.items():
            axes.barh(place, each, left=begun, color=_COLOURS[role])
            begun += each
    handles = [mpl.patches.Patch(color=_COLOURS[role], label=role) for role in ROLES]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="lower right")
