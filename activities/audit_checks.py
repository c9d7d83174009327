"""The checks of audit.sql, as statements."""

import re
from pathlib import Path

from sqlalchemy import TextClause, text

from domain.policies import AUDIT_VIOLATIONS_SHOWN

_CHECK_HEADING = re.compile(r"^-- ([AQ]\d+): (.+)$", re.MULTILINE)


def audit_checks() -> dict[str, tuple[str, TextClause]]:
    """Read audit.sql: each check's claim and query, by its id."""
    source = (Path(__file__).parent / "audit.sql").read_text(encoding="utf-8")
    _, *parts = _CHECK_HEADING.split(source)
    return {
        name: (claim, text(query.strip().rstrip(";")))
        for name, claim, query in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


def first_and_count(check: TextClause) -> TextClause:
    """Have Postgres count what breaks a check, and send no more of it than the audit shows."""
    return text(
        f"WITH broken AS MATERIALIZED ({check.text}) "  # noqa: S608 - of our own file
        f"SELECT *, (SELECT count(*) FROM broken) AS found FROM broken LIMIT {AUDIT_VIOLATIONS_SHOWN}"
    )
