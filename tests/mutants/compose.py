"""Faults in docker-compose.yml and its files: a stack that does not come up, loses its data, or cannot be reached.

tests/unit/test_compose_values.py has each value of docker-compose.yml another and each entry gone: these are the rest.
"""

from tests.mutants.killers import COMPOSE, COMPOSE_WIRING, at
from tests.mutants.mutant import Mutant

_FILE = "docker-compose.yml"
_IMAGE = "deploy/Dockerfile"
_NETWORKS = at(COMPOSE_WIRING, "test_a_service_is_on_the_networks_of_those_it_talks_to_and_no_other")
_NO_PASSWORD_LOGGED = at(COMPOSE, "test_no_password_gets_into_the_servers_log_whatever_it_logs_and_whatever_fails")

MUTANTS = (
    Mutant(
        "compose-data-beside-the-volume",
        "`docker compose down` would delete every order",
        _FILE,
        "      - postgres-data:/var/lib/postgresql\n",
        "      - postgres-data:/var/lib/postgres\n",
        at(COMPOSE_WIRING, "test_the_data_are_on_volumes_of_their_own_where_the_image_keeps_them"),
    ),
    Mutant(
        "compose-namespace-that-gives-up-in-silence",
        "the worker would be started without what it needs",
        _FILE,
        '[ "$$tries" -lt 60 ] || exit 1\n',
        '[ "$$tries" -lt 60 ] || exit 0\n',
        at(COMPOSE_WIRING, "test_the_namespace_job_fails_when_one_of_its_steps_never_works"),
    ),
    Mutant(
        "compose-few-connections",
        "Temporal and two workers would use up all of Postgres' connections",
        _FILE,
        "max_connections=300",
        "max_connections=100",
        at(COMPOSE_WIRING, "test_postgres_has_connections_for_temporal_and_for_several_workers"),
    ),
    Mutant(
        "compose-passwords-are-swapped",
        "neither role could log in once the passwords differ",
        "deploy/compose/roles.sql",
        "ALTER ROLE checkout PASSWORD :'checkout_password';",
        "ALTER ROLE checkout PASSWORD :'temporal_password';",
        at(COMPOSE, "test_the_schema_job_may_run_again_and_sets_each_roles_own_password"),
    ),
    Mutant(
        "env-example-with-another-default",
        "with a copy of the example another version would run than without",
        ".env.example",
        "TEMPORAL_UI_PORT=8233",
        "TEMPORAL_UI_PORT=8080",
        at(COMPOSE, "test_env_example_lists_every_variable_of_the_compose_file_with_its_default"),
    ),
    Mutant(
        "image-with-a-room-in-another-place",
        "the starter of the image could not be imported",
        _IMAGE,
        "COPY client/ client/\n",
        "COPY client/ clients/\n",
        at(COMPOSE, "test_the_programs_find_all_that_they_import_in_what_the_image_gets[starter.py]"),
    ),
    Mutant(
        "image-that-runs-as-root",
        "an intruder in the worker would be root in its container",
        _IMAGE,
        "USER 10001:10001\n",
        "USER 0:0\n",
        at(COMPOSE, "test_the_image_ends_as_a_user_without_rights"),
    ),
    Mutant(
        "compose-with-a-default-password",
        "any reader of this repository could log in to every stack with the default",
        _FILE,
        "      POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?",
        "      POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:-",
        at(COMPOSE, "test_there_is_no_default_password_and_no_port_without_one"),
    ),
    Mutant(
        "compose-passwords-are-made-anew",
        "a second run would lock the stack out of its own volume",
        "deploy/compose/passwords.sh",
        "[ -e .env ] || from=.env.example",
        "from=.env.example",
        at(COMPOSE, "test_the_script_makes_a_password_for_each_role_and_keeps_it"),
    ),
    Mutant(
        "compose-passwords-that-every-user-can-read",
        "every user of the machine would have the database's passwords",
        "deploy/compose/passwords.sh",
        "umask 077",
        "umask 022",
        at(COMPOSE, "test_the_script_makes_a_password_for_each_role_and_keeps_it"),
    ),
    Mutant(
        "compose-ui-beside-the-database",
        "an intruder in the page could reach the database",
        _FILE,
        "    networks: [temporal, front]\n",
        "    networks: [temporal, front, database]\n",
        _NETWORKS,
    ),
    Mutant(
        "compose-namespace-waits-for-an-answer",
        "a server that takes connections and says nothing would hold up the stack for ever",
        _FILE,
        "operator cluster health --command-timeout 10s",
        "operator cluster health",
        at(COMPOSE_WIRING, "test_the_namespace_job_fails_when_one_of_its_steps_never_works"),
    ),
    Mutant(
        "compose-passwords-are-logged",
        "a reader of the logs of a server that logs every statement could log in",
        "deploy/compose/roles.sql",
        "SET log_statement = 'none';\n",
        "",
        _NO_PASSWORD_LOGGED,
    ),
    Mutant(
        "compose-passwords-are-logged-when-slow",
        "a reader of the logs of a server that logs slow statements could log in",
        "deploy/compose/roles.sql",
        "SET log_min_duration_statement = -1;\n",
        "",
        _NO_PASSWORD_LOGGED,
    ),
    Mutant(
        "compose-passwords-are-logged-where-they-fail",
        "a job that ends with an error would leave a password in the server's log",
        "deploy/compose/roles.sql",
        "SET log_min_error_statement = 'panic';\n",
        "",
        _NO_PASSWORD_LOGGED,
    ),
    Mutant(
        "compose-peoples-passwords-are-swapped",
        "who may only read could open customers and change prices",
        "deploy/compose/roles.sql",
        "('checkout_reader', :'reader_password'), ('checkout_operator', :'operator_password')",
        "('checkout_reader', :'operator_password'), ('checkout_operator', :'reader_password')",
        at(COMPOSE, "test_the_schema_job_may_run_again_and_sets_each_roles_own_password"),
    ),
    Mutant(
        "image-without-a-heartbeat",
        "without Compose workers would never be healthy",
        _IMAGE,
        "    CHECKOUT_HEARTBEAT_FILE=/tmp/checkout.heartbeat \\\n",
        "    PYTHONHASHSEED=0 \\\n",
        at(COMPOSE_WIRING, "test_the_volumes_of_the_log_and_the_keys_belong_to_the_images_user"),
    ),
)
