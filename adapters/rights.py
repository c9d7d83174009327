"""Rights that the worker's role has beyond its work: logged as warnings at the start, which goes on.

setup.sql revokes most of them. It cannot revoke rights on other databases of the server, make the server ask for a
password, or keep a role from changing its own password and settings. A changed password shows as a failed login.
"""

import logging

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

_log = logging.getLogger("checkout.rights")

_MOST_NAMES = 5

# One row for each excess right: what it is, and what an administrator runs. The role's settings that setup.sql gives it
# are passed over here: adapters/schema.py checks their effect.
_EXCESS = text(r"""
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
# Null for a login that was not authenticated. Servers before 16 do not have it.
_AUTHENTICATED_AS = text("SELECT system_user")
_SYSTEM_USER_SINCE = 16

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
    """List what the connected role may do beyond its work, each with what to run as an administrator."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_EXCESS, {"most": _MOST_NAMES, "known": list(SETTINGS)})).all()
        lines = [f"it {row.what} (run {row.remedy})" for row in rows]
        has_system_user = (await connection.execute(_SERVER)).scalar_one() >= _SYSTEM_USER_SINCE
        if has_system_user and (await connection.execute(_AUTHENTICATED_AS)).scalar_one() is None:
            lines.append("it is let in without a password (ask for one in pg_hba.conf: scram-sha-256)")
    return lines


async def alarm(engine: AsyncEngine) -> None:
    """Log a warning for each thing that the role may do beyond its work."""
    for line in await too_much(engine):
        _log.warning(
            "the worker's role may more than it needs: %s; see docs/operations.md, Roles and passwords",
            line,
            extra={"action": "too_many_rights"},
        )
