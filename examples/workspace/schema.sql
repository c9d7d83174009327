-- The workspaces' own tables. Those of sagafence come with it: python -m sagafence schema
CREATE TABLE subdomains (
    name         text PRIMARY KEY,
    workspace_id text NOT NULL UNIQUE
);

CREATE TABLE seat_pools (
    plan text PRIMARY KEY,
    free integer NOT NULL CHECK (free >= 0)
);

INSERT INTO seat_pools VALUES ('team', 1000), ('company', 10), ('pilot', 1000);
