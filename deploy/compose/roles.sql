-- Run by docker-compose.yml after setup.sql, at every start: who may log in over the network.

\getenv checkout_password CHECKOUT_ROLE_PASSWORD
\getenv temporal_password TEMPORAL_ROLE_PASSWORD

ALTER ROLE checkout PASSWORD :'checkout_password';

-- Temporal creates its two databases itself and has no right to anything in ours.
SELECT 'CREATE ROLE temporal LOGIN CREATEDB'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'temporal') \gexec
ALTER ROLE temporal PASSWORD :'temporal_password';
