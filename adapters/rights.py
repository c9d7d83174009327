"""What the worker's role may do beyond its work, and what to do about it: told at start, and no reason not to work.

setup.sql takes most of it away. What it cannot take away is left: what somebody gave the role elsewhere on the server,
a server that asks for no password, and that every role may change its own password and its own settings. Of a password
that was changed no more has to be told than that the login fails.
"""

import logging

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

_log = logging.getLogger("checkout.rights")

_MOST_NAMES = 5

# One row for each thing that is too much: what it is, and what an administrator runs. A role's own settings are told
# apart by name: those of setup.sql are compared by what they do (adapters/schema.py).
_TOO_MUCH = text(r"""
    WITH me AS (SELECT * FROM pg_roles WHERE rolname = current_user)
    SELECT format('is %s', attribute) AS what, format('ALTER ROLE %I NO%s', rolname, attribute) AS remedy
      FROM me, LATERAL (VALUES ('SUPERUSER', rolsuper), ('CREATEROLE', rolcreaterole), ('CREATEDB', rolcreatedb),
                               ('REPLICATION', rolreplication), ('BYPASSRLS', rolbypassrls)) AS a (attribute, has)
     WHERE has
    UNION ALL
    SELECT format('is a member of %s', roleid::regrole), format('REVOKE %s FROM %I', roleid::regrole, rolname)
      FROM me JOIN pg_auth_members m ON m.member = me.oid
    UNION ALL
    SELECT 'owns tables of ours', 'setup.sql'
      FROM me WHERE EXISTS (SELECT FROM pg_class c WHERE c.relowner = me.oid
                               AND c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p'))
    UNION ALL
    SELECT 'may make things in schema public', 'setup.sql' FROM me
     WHERE to_regnamespace('public') IS NOT NULL AND has_schema_privilege('public', 'CREATE') AND NOT rolsuper
    UNION ALL
    SELECT 'may make temporary tables or schemas in this database', 'setup.sql' FROM me
     WHERE NOT rolsuper AND (has_database_privilege(current_database(), 'TEMP')
                             OR has_database_privilege(current_database(), 'CREATE'))
    UNION ALL
    SELECT 'gets into other databases too: ' || string_agg(datname, ', ' ORDER BY datname),
           string_agg(format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC, %I', datname, current_user), '; '
                      ORDER BY datname)
      FROM (SELECT datname FROM pg_database d, me
             WHERE datallowconn AND datname <> current_database() AND NOT rolsuper
               AND has_database_privilege(d.oid, 'CONNECT') ORDER BY datname LIMIT CAST(:most AS integer)) AS other
    HAVING count(*) > 0
    UNION ALL
    SELECT 'may take every session that the server has', 'setup.sql' FROM me WHERE rolconnlimit = -1
    UNION ALL
    SELECT 'has settings of its own that setup.sql does not give it: ' || string_agg(name, ', ' ORDER BY name),
           string_agg(format('ALTER ROLE %I RESET %I', current_user, name), '; ' ORDER BY name)
      FROM (SELECT DISTINCT split_part(setting, '=', 1) AS name
              FROM me JOIN pg_db_role_setting s ON s.setrole = me.oid AND s.setdatabase = 0,
                   unnest(s.setconfig) AS setting
             WHERE split_part(setting, '=', 1) <> ALL (CAST(:known AS text[]))) AS own
    HAVING count(*) > 0
""")
_SERVER = text("SELECT current_setting('server_version_num')::integer / 10000")
# Null: nobody asked. Servers before 16 do not tell.
_LET_IN_BY = text("SELECT system_user")
_TELLS_HOW_SINCE = 16

SETTINGS = (
    "search_path",
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "client_connection_check_interval",
    "enable_seqscan",
)
"""What setup.sql sets for the worker's role."""


async def too_much(engine: AsyncEngine) -> list[str]:
    """Say in a line each what the connected role may do beyond its work, with what to run as an administrator."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_TOO_MUCH, {"most": _MOST_NAMES, "known": list(SETTINGS)})).all()
        told = [f"it {row.what} (run {row.remedy})" for row in rows]
        tells = (await connection.execute(_SERVER)).scalar_one() >= _TELLS_HOW_SINCE
        if tells and (await connection.execute(_LET_IN_BY)).scalar_one() is None:
            told.append("it is let in without a password (ask for one in pg_hba.conf: scram-sha-256)")
    return told


async def alarm(engine: AsyncEngine) -> None:
    """Log a warning for each thing that the role may do beyond its work."""
    for line in await too_much(engine):
        _log.warning(
            "the worker's role may more than it needs: %s; see docs/operations.md, Roles and passwords",
            line,
            extra={"action": "too_many_rights"},
        )
