-- Run by docker-compose.yml after setup.sql, at every start: who may log in over the network.

\getenv checkout_password CHECKOUT_ROLE_PASSWORD
\getenv temporal_password TEMPORAL_ROLE_PASSWORD
\getenv reader_password READER_ROLE_PASSWORD
\getenv operator_password OPERATOR_ROLE_PASSWORD

-- No password gets into the server's log, whatever it logs and whatever fails here.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

ALTER ROLE checkout PASSWORD :'checkout_password';

-- Temporal creates its two databases itself and has no right to anything in ours.
SELECT 'CREATE ROLE temporal LOGIN CREATEDB'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'temporal') \gexec
ALTER ROLE temporal PASSWORD :'temporal_password';

-- People: without a password nobody logs in as these.
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', rolname, nullif(password, ''))
  FROM (VALUES ('checkout_reader', :'reader_password'), ('checkout_operator', :'operator_password'))
    AS person (rolname, password)
  JOIN pg_roles USING (rolname) \gexec
