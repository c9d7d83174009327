"""The library's tables: making them, and checking that they are there before a worker takes its first task."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagafence.database import single_statement, transaction
from sagafence.tables import FIX, OLDEST_SERVER, VERSION_TABLE, ddl, tables, version

__all__ = ["SchemaMissing", "check", "ddl", "install"]

_NEEDED = f"sagafence needs PostgreSQL {OLDEST_SERVER} or newer"

_SERVER = text("SELECT version() AS name, CAST(current_setting('server_version_num') AS integer) AS number")
# As the connected role finds them, by its search_path. A right on some columns counts: which ones are needed, the
# statements alone know.
_COLUMNS = text("""
    SELECT ours.name, a.attname AS column,
           ARRAY(SELECT wanted FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS wanted
                  WHERE NOT has_any_column_privilege(c.oid, wanted)) AS missing_rights
      FROM unnest(CAST(:tables AS text[])) AS ours (name)
      JOIN pg_class c ON c.oid = to_regclass(ours.name) AND c.relkind IN ('r', 'p')
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
""")
_NEVER_WRITTEN = {VERSION_TABLE: {"INSERT", "UPDATE"}, "saga_verdicts": {"UPDATE"}}
_VERSION = text(f"SELECT version FROM {VERSION_TABLE}")  # noqa: S608 - a constant of ours


class SchemaMissing(Exception):
    """The database is not what the library needs. The message says what is missing, and how to mend it."""


async def install(engine: AsyncEngine) -> None:
    """Make the tables, or add to them what a newer release needs, in one transaction.

    Safe to repeat, and at the same time: two take turns. The engine's role must be allowed to create tables.

    Raises:
        SchemaMissing: it is no PostgreSQL, or one that is too old.
        DatabaseMisconfigured: the role may not create tables.
    """
    _refuse_other_dialects(engine)
    async with transaction(engine) as connection:
        await _refuse_other_servers(connection)
        # Many statements at once: SQLAlchemy would have the driver prepare them, which takes one.
        driver = (await connection.get_raw_connection()).driver_connection
        if driver is None:
            raise RuntimeError("SQLAlchemy gave a connection without its driver's")
        await driver.execute(ddl())


async def check(engine: AsyncEngine) -> None:
    """Return when the database has what this release needs, for the engine's role; call it before a worker starts.

    More than that is fine: a newer release adds first and uses later.

    Raises:
        SchemaMissing: naming everything that is missing.
        DatabaseUnavailable: it does not answer.
    """
    _refuse_other_dialects(engine)
    async with single_statement(engine) as connection:
        await _refuse_other_servers(connection)
        rows = (await connection.execute(_COLUMNS, {"tables": list(tables())})).all()
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row.name, set()).add(row.column)
        lacks = [f"table {name}" for name in tables() if name not in found]
        for name, columns in found.items():
            lacks += [f"column {name}.{column}" for column in sorted(tables()[name] - columns)]
        rights = {(right, row.name) for row in rows for right in row.missing_rights}
        lacks += [
            f"right {right} on {name}" for right, name in sorted(rights) if right not in _NEVER_WRITTEN.get(name, ())
        ]
        if not lacks:
            present = (await connection.execute(_VERSION)).scalar_one_or_none() or 0
            if present < version():
                lacks = [f"schema version {version()} (it has {present})"]
    if lacks:
        raise SchemaMissing(f"the database lacks {', '.join(lacks)}. {FIX}")


def _refuse_other_dialects(engine: AsyncEngine) -> None:
    if engine.dialect.name != "postgresql":
        raise SchemaMissing(
            f"sagafence needs PostgreSQL {OLDEST_SERVER} or newer, and this engine is for {engine.dialect.name}"
        )


async def _refuse_other_servers(connection: AsyncConnection) -> None:
    server = (await connection.execute(_SERVER)).one()
    if not server.name.startswith("PostgreSQL ") or server.number // 10_000 < OLDEST_SERVER:
        raise SchemaMissing(f"{_NEEDED}, and this server is {server.name}")
