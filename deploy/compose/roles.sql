-- Run by docker-compose.yml after setup.sql, at every start: the logins over the network.

\getenv checkout_password CHECKOUT_ROLE_PASSWORD
\getenv temporal_password TEMPORAL_ROLE_PASSWORD
\getenv reader_password READER_ROLE_PASSWORD
\getenv operator_password OPERATOR_ROLE_PASSWORD

-- No password gets into the server's log, with any log settings and any failure here.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

ALTER ROLE checkout PASSWORD :'checkout_password';

-- Temporal has two databases of its own and no right to anything in ours. Its schema tool finds them here.
SELECT 'CREATE ROLE temporal LOGIN CREATEDB'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'temporal') \gexec
ALTER ROLE temporal PASSWORD :'temporal_password';
SELECT format('CREATE DATABASE %I OWNER temporal', name)
  FROM (VALUES ('temporal'), ('temporal_visibility')) AS wanted (name)
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

-- Each role may connect to its own database alone; Temporal's schema tool begins at `postgres`.
SELECT format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', datname)
  FROM pg_database WHERE datname IN ('postgres', 'template1', 'temporal', 'temporal_visibility') \gexec
GRANT CONNECT ON DATABASE postgres TO temporal;

-- Readers and operators: no login without a password.
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', rolname, nullif(password, ''))
  FROM (VALUES ('checkout_reader', :'reader_password'), ('checkout_operator', :'operator_password'))
    AS person (rolname, password)
  JOIN pg_roles USING (rolname) \gexec
