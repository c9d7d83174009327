"""The SQL that makes the library's tables. Its files are beside this module, in the folder `schema`."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

OLDEST_SERVER = 14
"""The oldest major version of PostgreSQL that is supported."""
VERSION_TABLE = "sagafence_schema"
FIX = (
    "Run what makes its tables, as the owner of the database: a migration of your own, or where there is none "
    "`python -m sagafence schema | psql ...` or sagafence.install(engine)."
)
"""What to do where they are not there. Tables of the same names beside those of a migration would be a second truth."""

_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
# A constraint begins with a word in capitals, and what goes on in the next line is indented more.
_COLUMN = re.compile(r"^    ([a-z_]\w*) +[a-z]", re.MULTILINE)

_BEGINNING = """\
-- The tables of sagafence, version {version}. Run it in one transaction, as often as you like: what is there stays.
-- They are made in the first schema of the search_path, and found by it.
DO $$
DECLARE
    stray text;
BEGIN
    IF current_setting('server_version_num')::integer < {oldest}0000 THEN
        RAISE EXCEPTION 'PostgreSQL % is too old: sagafence needs {oldest} or newer', current_setting('server_version');
    END IF;
    IF current_schema() IS NULL THEN
        RAISE EXCEPTION 'no schema of the search_path is there (%)', current_setting('search_path')
            USING HINT = 'Make one, or set search_path to one that is there.';
    END IF;
    -- Two runs at once take turns.
    PERFORM pg_advisory_xact_lock(hashtext('sagafence schema'));
    -- An empty table in front of one with rows would let every step take effect once more.
    SELECT string_agg(format('%s in %s', c.relname, c.relnamespace::regnamespace), ', ') INTO stray
      FROM unnest(ARRAY[{tables}]) AS ours JOIN pg_class c ON c.oid = to_regclass(ours)
     WHERE c.relnamespace <> current_schema()::regnamespace;
    IF stray IS NOT NULL THEN
        RAISE EXCEPTION 'the tables would be made in schema %, and hide what is there: %', current_schema(), stray
            USING HINT = 'Set search_path so that the schema of those comes first.';
    END IF;
END $$;
"""

_END = """\
INSERT INTO {table} AS present (version) VALUES ({version})
    ON CONFLICT (is_the_row) DO UPDATE SET version = excluded.version WHERE present.version < excluded.version;
"""


@cache
def _sources() -> Mapping[str, str]:
    found = (path for path in files("sagafence").joinpath("schema").iterdir() if path.name.endswith(".sql"))
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(found, key=lambda path: path.name)}


@cache
def version() -> int:
    """Return the version of the tables: the number of the newest file."""
    return max(int(name[:3]) for name in _sources() if name[:3].isdigit())


@cache
def tables() -> Mapping[str, frozenset[str]]:
    """Map the names of the tables to those of their columns."""
    return {
        table: frozenset(_COLUMN.findall(body))
        for source in _sources().values()
        for table, body in _TABLE.findall(source)
    }


def ddl() -> str:
    """Return the statements that make the tables, or add to them what a newer release needs; safe to repeat.

    For a migration tool: it runs them in one transaction. They begin and commit none.
    """
    names = ", ".join(f"'{table}'" for table in tables())
    beginning = _BEGINNING.format(version=version(), oldest=OLDEST_SERVER, tables=names)
    return "\n".join([beginning, *_sources().values(), _END.format(table=VERSION_TABLE, version=version())])


def script() -> str:
    """Return the same for psql, which would go on after an error, and say with its exit status that all is well."""
    return f"\\set ON_ERROR_STOP on\n\nBEGIN;\nSET LOCAL client_min_messages = warning;\n\n{ddl()}\nCOMMIT;\n"
