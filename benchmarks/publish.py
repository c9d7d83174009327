"""Putting the results where people read them: between two marks of docs/performance.md, and the picture beside it."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Results
from devstack.stack import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def publish(text: str, results: Mapping[str, Results], caption: str) -> None:
    """Replace what stands between the marks, and the picture.

    Raises:
        ValueError: the document has lost a mark.
    """
    from benchmarks import plot  # noqa: PLC0415 - matplotlib is of the peers' layer

    plot.draw(results, caption, PICTURE)
    between_marks(DOCUMENT, f"{text}\n\n![Throughput, latency alone and processor time]({PICTURE.name})")


def between_marks(document: Path, text: str) -> None:
    """Replace what stands between the marks of a document.

    Raises:
        ValueError: a mark is missing.
    """
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{document} has no {BEGIN} ... {END}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
