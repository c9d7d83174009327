"""Records the currencies of ISO 4217 and their minor units, for domain/currencies.py and setup.sql.

python -m tests.record_currencies [XML]

The source is the list of the standard's maintenance agency (SIX, list one), kept in tests/iso_4217.xml. A newer one
comes with PyPI's `iso4217`: give the path of its table.xml, as in
`uv run --no-project --with iso4217 python -c "import iso4217; print(iso4217.__path__[0] + '/table.xml')"`.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from xml.etree import ElementTree as ET

from devstack.stack import ROOT

SOURCE = Path(__file__).with_name("iso_4217.xml")
_MODULE = ROOT / "domain" / "currencies.py"
_SETUP = ROOT / "setup.sql"
_ROWS = re.compile(
    r"(?<=INSERT INTO currencies \(code, minor_units\) VALUES\n).*?(?=\nON CONFLICT DO NOTHING;)", re.DOTALL
)


def published(source: Path = SOURCE) -> tuple[str, Mapping[str, int]]:
    """Read when the list was published, and which currency has how many decimals; gold and its like have none."""
    root = ET.parse(source).getroot()
    entries = ((entry.findtext("Ccy"), entry.findtext("CcyMnrUnts")) for entry in root.iter("CcyNtry"))
    return root.attrib["Pblshd"], {
        code: int(units) for code, units in sorted(set(entries), key=str) if code and units and units.isdigit()
    }


def _of(minor_units: int, table: Mapping[str, int], width: int) -> Iterator[str]:
    yield from wrap(" ".join(code for code, units in table.items() if units == minor_units), width)


def module(date: str, table: Mapping[str, int]) -> str:
    """Write domain/currencies.py."""
    lines = [
        f'"""ISO 4217 as published on {date}: by `python -m tests.record_currencies`, as the rows in setup.sql are."""',
        "",
        "_CODES = {",
    ]
    for units in sorted(set(table.values())):
        lines += [f"    {units}: (", *(f'        "{part} "' for part in _of(units, table, 100)), "    ),"]
    lines += [
        "}",
        "MINOR_UNITS = {code: units for units, codes in _CODES.items() for code in codes.split()}",
        '"""How many decimals an amount of which currency has."""',
    ]
    return "\n".join(lines) + "\n"


def setup(table: Mapping[str, int], text: str) -> str:
    """Put the rows into the text of setup.sql."""
    rows = wrap(" ".join(f"('{code}',~{units})," for code, units in table.items()).rstrip(","), 114)
    return _ROWS.sub("\n".join(f"    {row}" for row in rows).replace("~", " "), text)


def main() -> None:
    """Read the list, and write both down."""
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], SOURCE)
    date, table = published()
    _MODULE.write_text(module(date, table), encoding="utf-8")
    _SETUP.write_text(setup(table, _SETUP.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{len(table)} currencies of {date}\n")


if __name__ == "__main__":
    main()
