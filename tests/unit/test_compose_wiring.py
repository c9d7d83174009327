"""Who talks to whom in docker-compose.yml, where, as whom and when: each side of a connection fits the other.

No container engine runs here. What the images make of their settings is written down below, from their own documents.
"""

import re
import subprocess
import sys
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import heartbeat
from adapters.config import WorkerSettings
from adapters.database import _READER_SESSIONS
from devstack.stack import DATABASE, READER, ROLE, ROOT, DevStack
from http_api.server import _STREAMS_END_SECONDS
from sagafence.devservers.placement import installed
from tests.unit.compose_file import distinct, document, services

# What each image listens on.
LISTENS = {"postgres": 5432, "temporal": 7233, "temporal-ui": 8080, "api": 8080}
# Who has to be up, or to have ended well, before whom.
NEEDS = {
    "postgres": set(),
    "schema": {"postgres"},
    "demo-catalogue": {"schema"},  # which has waited for postgres
    "temporal-schema": {"postgres", "schema"},  # which makes the role that it logs in as
    "temporal": {"postgres", "temporal-schema"},
    "temporal-namespace": {"temporal"},
    "temporal-ui": {"temporal"},
    "worker": {"postgres", "schema", "temporal", "temporal-namespace"},
    "api": {"postgres", "schema", "temporal", "temporal-namespace"},
}
# The settings that say where somebody else is.
NAMES_A_HOST = {"PGHOST", "SQL_HOST", "POSTGRES_SEEDS", "TEMPORAL_ADDRESS", "CHECKOUT_DATABASE_URL"}
TEMPORALS_ROLE = "temporal"
TEMPORALS_DATABASES = {"DBNAME": "temporal", "VISIBILITY_DBNAME": "temporal_visibility"}
NAMESPACE = "default"

SET = distinct()
PASSWORDS = {
    "postgres": SET["POSTGRES_PASSWORD"],
    ROLE: SET["POSTGRES_CHECKOUT_PASSWORD"],
    TEMPORALS_ROLE: SET["POSTGRES_TEMPORAL_PASSWORD"],
    READER: SET["POSTGRES_READER_PASSWORD"],
}
FRONTEND = f"temporal:{LISTENS['temporal']}"
UI_URL = f"http://127.0.0.1:{SET['TEMPORAL_UI_PORT']}"

# All that each container is told. A name that its image does not read, or does not find, is as bad as a wrong value.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "postgres": {"POSTGRES_DB": DATABASE, "POSTGRES_PASSWORD": PASSWORDS["postgres"]},
    "schema": {
        "PGHOST": "postgres",
        "PGDATABASE": DATABASE,
        "PGUSER": "postgres",
        "PGPASSWORD": PASSWORDS["postgres"],
        "CHECKOUT_ROLE_PASSWORD": PASSWORDS[ROLE],
        "TEMPORAL_ROLE_PASSWORD": PASSWORDS[TEMPORALS_ROLE],
        "READER_ROLE_PASSWORD": PASSWORDS[READER],
        "OPERATOR_ROLE_PASSWORD": SET["POSTGRES_OPERATOR_PASSWORD"],
    },
    "demo-catalogue": {
        "PGHOST": "postgres",
        "PGDATABASE": DATABASE,
        "PGUSER": "postgres",
        "PGPASSWORD": PASSWORDS["postgres"],
    },
    "temporal-schema": {
        "SQL_PLUGIN": "postgres12",
        "SQL_HOST": "postgres",
        "SQL_PORT": str(LISTENS["postgres"]),
        "SQL_USER": TEMPORALS_ROLE,
        "SQL_PASSWORD": PASSWORDS[TEMPORALS_ROLE],
    },
    "temporal": {
        "DB": "postgres12",
        "POSTGRES_SEEDS": "postgres",
        "DB_PORT": str(LISTENS["postgres"]),
        "POSTGRES_USER": TEMPORALS_ROLE,
        "POSTGRES_PWD": PASSWORDS[TEMPORALS_ROLE],
        **TEMPORALS_DATABASES,
        "NUM_HISTORY_SHARDS": "4",  # another number loses the workflows of every stack that exists
        "BIND_ON_IP": "0.0.0.0",  # the loopback address is the container's own
        # With three networks the image's own look-up gives three addresses, of which it makes one that is none.
        "TEMPORAL_BROADCAST_ADDRESS": "127.0.0.1",
        "DYNAMIC_CONFIG_FILE_PATH": "/etc/temporal/dynamic-config.yaml",
        "LOG_LEVEL": "warn",
    },
    "temporal-namespace": {"TEMPORAL_ADDRESS": FRONTEND, "TEMPORAL_NAMESPACE": NAMESPACE},
    "temporal-ui": {
        "TEMPORAL_ADDRESS": FRONTEND,
        "TEMPORAL_UI_PORT": str(LISTENS["temporal-ui"]),
        "TEMPORAL_CORS_ORIGINS": f"{UI_URL},{UI_URL.replace('127.0.0.1', 'localhost')}",
        "TEMPORAL_CSRF_COOKIE_INSECURE": "true",
        "TEMPORAL_NOTIFY_ON_NEW_VERSION": "false",
    },
    "worker": {
        "CHECKOUT_DATABASE_URL": f"postgresql://{ROLE}:{PASSWORDS[ROLE]}@postgres:{LISTENS['postgres']}/{DATABASE}",
        "CHECKOUT_LOG_FILE": "/var/lib/checkout/saga.log",
        "CHECKOUT_HEARTBEAT_FILE": "/tmp/checkout.heartbeat",
        "CHECKOUT_BUILD_ID": SET["WORKER_BUILD_ID"],
        "CHECKOUT_UI_URL": UI_URL,
        "TEMPORAL_ADDRESS": FRONTEND,
        "TEMPORAL_NAMESPACE": NAMESPACE,
    },
    "api": {
        # Any other role may write, and the API refuses to run as it.
        "CHECKOUT_DATABASE_URL": f"postgresql://{READER}:{PASSWORDS[READER]}@postgres:{LISTENS['postgres']}/{DATABASE}",
        "CHECKOUT_API_HOST": "0.0.0.0",  # the loopback address is the container's own
        "CHECKOUT_API_PORT": str(LISTENS["api"]),
        "CHECKOUT_API_KEYS_FILE": "/var/lib/checkout-api/api-keys.json",
        "CHECKOUT_UI_URL": UI_URL,
        "TEMPORAL_ADDRESS": FRONTEND,
        "TEMPORAL_NAMESPACE": NAMESPACE,
    },
}


def seconds(duration: str) -> float:
    [(number, unit)] = re.findall(r"^(\d+)(ms|s|m)$", duration)
    return int(number) * {"ms": 0.001, "s": 1.0, "m": 60.0}[unit]


def megabytes(size: str) -> int:
    [(number, unit)] = re.findall(r"^(\d+)([mg])$", size)
    return int(number) * {"m": 1, "g": 1024}[unit]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Give where each volume or file of the service is seen, and what it is."""
    entries = service.get("volumes", [])
    pairs = [
        (entry["target"], entry["source"]) if isinstance(entry, dict) else (entry.split(":")[1], entry.split(":")[0])
        for entry in entries
    ]
    assert len(dict(pairs)) == len(pairs), "two mounts in one place"
    return dict(pairs)


def stub(folder: Path, name: str, body: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    program.chmod(0o755)


def run_script(service: str, folder: Path) -> tuple[int, list[str]]:
    """Run a job's script on the stubs of a folder; give its status, and what they noted down."""
    job = services()[service]
    done = subprocess.run(
        [*job["entrypoint"], *job["command"]],
        env={"PATH": f"{folder}:/usr/bin:/bin", "NOTES": str(folder / "notes"), **job["environment"]},
        check=False,
        timeout=60,
    )
    notes = folder / "notes"
    return done.returncode, notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []


# Who talks to whom -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_container_is_reported_the_hosts_ports_roles_and_passwords_of_the_others(name: str) -> None:
    assert services(**SET)[name]["environment"] == ENVIRONMENTS[name]


def test_every_service_has_its_place() -> None:
    assert services().keys() == ENVIRONMENTS.keys() == NEEDS.keys()
    assert {key for key in document() if not key.startswith("x-")} == {"name", "services", "networks", "volumes"}
    for service in services().values():
        assert service.keys().isdisjoint({"network_mode", "hostname", "links", "container_name"})
    # Customers with money out of nothing are made where somebody asks for them.
    assert {name: made["profiles"] for name, made in services().items() if "profiles" in made} == {
        "demo-catalogue": ["demo"]
    }


NETWORKS = {
    "postgres": {"database", "postgres-port"},
    "schema": {"database"},
    "demo-catalogue": {"database"},
    "temporal-schema": {"database"},
    "temporal": {"database", "temporal", "front"},
    "temporal-namespace": {"temporal"},
    "temporal-ui": {"temporal", "front"},
    "worker": {"database", "temporal"},
    "api": {"database", "temporal", "api-port"},
}


def test_a_service_is_on_the_networks_of_those_it_talks_to_and_no_other() -> None:
    assert {name: set(made["networks"]) for name, made in services().items()} == NETWORKS
    for name, made in services().items():
        for setting, value in made["environment"].items():
            if setting in NAMES_A_HOST:
                host = re.sub(r"^.*@|:\d+(/.*)?$", "", value)
                assert NETWORKS[name] & NETWORKS[host], f"{name} does not find {host}"
    # The page of the UI, and whoever breaks into it, has no way to the database.
    assert NETWORKS["temporal-ui"].isdisjoint(NETWORKS["postgres"])
    assert [name for name, networks in NETWORKS.items() if "api-port" in networks] == ["api"], "nor to the API"


def test_only_what_has_a_published_port_has_a_way_out() -> None:
    made = document()
    inner = {name for name, network in made["networks"].items() if (network or {}).get("internal")}

    assert made["networks"].keys() == set().union(*NETWORKS.values())
    assert inner == {"database", "temporal"}
    for name, service in made["services"].items():
        # A port is published by way of a network that has a way out, and by no other.
        assert bool(NETWORKS[name] - inner) == ("ports" in service)


def test_no_container_can_take_the_machine_with_it() -> None:
    for service in services().values():
        # More processors than a machine has are refused: one, which every machine has.
        assert 0.5 <= service["cpus"] <= 1
        # Below, Postgres and a Go program are killed while they start; above, the limit is none on a small machine.
        assert 200 <= megabytes(service["mem_limit"]) <= 2048
        assert 100 <= service["pids_limit"] <= 1000
        assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


@pytest.mark.parametrize("name", NEEDS)
def test_a_service_waits_for_all_that_it_talks_to(name: str) -> None:
    made = services()[name]
    hosts = [value for setting, value in made["environment"].items() if setting in NAMES_A_HOST]
    spoken_to = {re.sub(r"^.*@|:\d+(/.*)?$", "", host) for host in hosts}

    assert made.get("depends_on", {}).keys() == NEEDS[name]
    assert spoken_to <= NEEDS[name] | {before for needed in NEEDS[name] for before in NEEDS[needed]}
    for wait in made.get("depends_on", {}).values():
        assert wait.keys() == {"condition"}, "`required: false` would not wait at all"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("postgres", "POSTGRES_PORT"),
        ("temporal", "TEMPORAL_PORT"),
        ("temporal-ui", "TEMPORAL_UI_PORT"),
        ("api", "API_PORT"),
    ],
)
def test_a_published_port_is_the_one_that_the_server_listens_on(name: str, variable: str) -> None:
    assert services(**SET)[name]["ports"] == [f"127.0.0.1:{SET[variable]}:{LISTENS[name]}"]


def test_a_worker_may_be_there_many_times() -> None:
    worker = services()["worker"]

    assert worker["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
    assert "ports" not in worker
    assert worker.keys().isdisjoint({"image", "command", "entrypoint", "user", "working_dir", "deploy", "scale"})


def test_the_api_is_the_same_image_with_another_program() -> None:
    made = services()
    same = {"build", "init", "restart", "depends_on", "read_only", "tmpfs", "cap_drop", "security_opt"}

    assert {name: made["api"][name] for name in same} == {name: made["worker"][name] for name in same}
    assert made["api"]["command"] == ["python", "api.py"]
    assert made["api"].keys().isdisjoint({"image", "entrypoint", "user", "working_dir", "deploy", "scale"})


def test_postgres_has_connections_for_temporal_and_for_several_workers() -> None:
    command = services()["postgres"]["command"]
    pool: int = WorkerSettings.model_fields["database_pool_size"].default

    assert command[:2] == ["postgres", "-c"]
    [connections] = re.findall(r"^max_connections=(\d+)$", command[2])
    assert int(connections) >= 4 * (20 + 10) + 5 * (pool + 2 + 1) + _READER_SESSIONS


# Versions -----------------------------------------------------------------------------------------------------


def test_the_images_are_of_the_versions_that_are_tested_here() -> None:
    named = {name: service["image"] for name, service in services().items() if "image" in service}
    assert all(re.search(r":\d+\.\d+(\.\d+)?@sha256:[0-9a-f]{64}$", image) for image in named.values())
    images = {name: image.partition("@")[0].split(":") for name, image in named.items()}
    postgres = subprocess.run([installed(18) / "postgres", "--version"], capture_output=True, text=True, check=True)
    program = Path(sysconfig.get_path("scripts")) / "temporal"
    temporal = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    [(server, ui)] = re.findall(r"\(Server ([\d.]+), UI ([\d.]+)\)", temporal.stdout)

    assert images == {
        "postgres": ["postgres", postgres.stdout.split()[-1]],
        "schema": ["postgres", postgres.stdout.split()[-1]],
        "demo-catalogue": ["postgres", postgres.stdout.split()[-1]],
        "temporal-schema": ["temporalio/admin-tools", server],
        "temporal": ["temporalio/server", server],
        "temporal-namespace": ["temporalio/admin-tools", server],
        "temporal-ui": ["temporalio/ui", ui],
    }


def test_one_variable_moves_all_images_of_one_program() -> None:
    images = {name: service["image"].split(":")[1] for name, service in services(**SET).items() if "image" in service}

    assert images == {
        "postgres": SET["POSTGRES_VERSION"],
        "schema": SET["POSTGRES_VERSION"],
        "demo-catalogue": SET["POSTGRES_VERSION"],
        "temporal-schema": SET["TEMPORAL_ADMIN_TOOLS_VERSION"],
        "temporal": SET["TEMPORAL_VERSION"],
        "temporal-namespace": SET["TEMPORAL_ADMIN_TOOLS_VERSION"],
        "temporal-ui": SET["TEMPORAL_UI_VERSION"],
    }


# What must outlive a container --------------------------------------------------------------------------------


def test_the_data_are_on_volumes_of_their_own_where_the_image_keeps_them() -> None:
    made = document()
    used = {name: mounts(service) for name, service in made["services"].items()}
    major = int(services()["postgres"]["image"].split(":")[1].split(".")[0])
    # https://hub.docker.com/_/postgres: PGDATA is /var/lib/postgresql/MAJOR/docker since 18.
    data = "/var/lib/postgresql" if major >= 18 else "/var/lib/postgresql/data"

    assert used["postgres"] == {data: "postgres-data"}
    assert used["worker"] == {"/var/lib/checkout": "saga-log"}
    assert used["api"] == {"/var/lib/checkout-api": "api-keys"}, "with the next build nobody's key would work"
    plain = dict.fromkeys(("postgres-data", "saga-log", "api-keys"))
    assert made["volumes"] == plain, "plain volumes, which outlive `down`"
    assert made["name"] == "checkout", "a volume's name begins with it: every stack that exists would look empty"
    for service in made["services"].values():
        for entry in service.get("volumes", []):
            assert isinstance(entry, dict) or entry.count(":") == 1, "read-only data are no data"


def test_what_a_container_writes_beside_its_volumes_is_in_memory() -> None:
    made = services()
    worker = made["worker"]

    # The UI writes its settings into its own folder.
    assert [name for name, service in made.items() if not service.get("read_only")] == ["temporal-ui"]
    assert {name: service["tmpfs"] for name, service in made.items() if service.get("tmpfs", ["/tmp"]) != ["/tmp"]} == {
        "postgres": ["/tmp", "/var/run/postgresql"]  # where its socket is
    }
    assert Path(worker["environment"]["CHECKOUT_HEARTBEAT_FILE"]).parent == Path("/tmp"), "one of each container's own"
    log = Path(worker["environment"]["CHECKOUT_LOG_FILE"])
    assert mounts(worker)[str(log.parent)] == "saga-log"
    keys = Path(made["api"]["environment"]["CHECKOUT_API_KEYS_FILE"])
    assert mounts(made["api"])[str(keys.parent)] == "api-keys"


def test_the_volumes_of_the_log_and_the_keys_belong_to_the_images_user() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    made = re.search(r"install --directory --owner=(\w+) --group=\1 (\S+) (\S+)", text)
    [user] = re.findall(r"useradd --uid (\d+) .* (\w+) ", text)

    assert made is not None
    assert user == ("10001", made[1]), "another uid cannot write on the volumes that there are"
    assert f"USER {user[0]}:{user[0]}\n" in text
    worker = services()["worker"]
    api = services()["api"]
    assert made[2] in mounts(worker)
    assert made[3] in mounts(api)
    # Who runs the image without this file finds its log, its health check and its keys where the documents say.
    for service, names in (
        (worker, ("CHECKOUT_LOG_FILE", "CHECKOUT_HEARTBEAT_FILE")),
        (api, ("CHECKOUT_API_HOST", "CHECKOUT_API_KEYS_FILE")),
    ):
        for name in names:
            assert f"{name}={service['environment'][name]}" in text.split()


# Health -------------------------------------------------------------------------------------------------------


def test_postgres_is_asked_about_our_database_by_tcp() -> None:
    # While a new data folder is being filled, a server answers on the socket alone.
    about = ["--host=127.0.0.1", "--username=postgres", f"--dbname={DATABASE}"]
    assert services()["postgres"]["healthcheck"]["test"] == ["CMD", "pg_isready", *about]


def test_postgres_is_healthy_once_it_answers(stack: DevStack) -> None:
    _, program, *arguments = services()["postgres"]["healthcheck"]["test"]

    for port, status in ((stack.postgres.port, 0), (1, 2)):
        asked = subprocess.run(
            [installed(18) / program, *arguments, f"--port={port}"], capture_output=True, check=False
        )
        assert asked.returncode == status


def test_temporal_is_healthy_once_its_frontend_listens() -> None:
    assert services()["temporal"]["healthcheck"]["test"] == ["CMD", "nc", "-z", "127.0.0.1", str(LISTENS["temporal"])]


def test_a_worker_is_healthy_by_its_own_heartbeat_and_has_the_time_that_it_may_wait_for_its_servers() -> None:
    worker = services()["worker"]
    check = worker["healthcheck"]
    startup: float = WorkerSettings.model_fields["startup_timeout_seconds"].default

    assert check["test"] == ["CMD", "python", "-m", "adapters.heartbeat"]
    assert heartbeat.FILE in worker["environment"]
    assert startup < seconds(check["start_period"]) <= 300
    assert 5 <= seconds(check["timeout"]) <= 10
    # The heartbeat has to be half a minute old already: whoever looks should not have to wait much longer.
    assert 20 <= check["retries"] * seconds(check["interval"]) <= 60
    assert (ROOT / "adapters/heartbeat.py").is_file()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_api_is_healthy_while_it_answers_for_itself(status: int | None, code: int) -> None:
    asked: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    check = services()["api"]["healthcheck"]
    kind, python, *arguments, script = check["test"]
    assert (kind, python, arguments) == ("CMD", "python", ["-c"])
    assert f'"127.0.0.1", {LISTENS["api"]},' in script
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        there = script.replace(str(LISTENS["api"]), str(server.server_port))
        done = subprocess.run([sys.executable, *arguments, there], capture_output=True, check=False, timeout=30)

    assert done.returncode == code
    assert asked == ([] if status is None else ["/healthz"])
    assert 4 < seconds(check["timeout"]) <= 10, "a message of its own comes first"
    assert 60 <= seconds(check["start_period"]) <= 300
    assert 20 <= check["retries"] * seconds(check["interval"]) <= 60


@pytest.mark.parametrize("name", ["postgres", "temporal"])
def test_a_server_gets_its_time_to_start_and_is_asked_often(name: str) -> None:
    check = services()[name]["healthcheck"]

    assert "disable" not in check
    assert seconds(check["interval"]) <= 5, "whoever waits for it would wait for longer than it takes"
    assert 1 <= seconds(check["timeout"]) <= 10
    assert 60 <= seconds(check["start_period"]) <= 300, "a first start fills a data folder"
    assert 20 <= check["retries"] * seconds(check["interval"]) <= 60, "an outage would not be told"


# Start and end -----------------------------------------------------------------------------------------------


def test_everybody_is_given_longer_to_stop_than_it_takes() -> None:
    made = services()
    grace: float = WorkerSettings.model_fields["shutdown_grace_seconds"].default

    assert seconds(made["worker"]["stop_grace_period"]) >= 2 * grace
    for name in ("postgres", "temporal"):
        assert seconds(made[name]["stop_grace_period"]) >= 30
    for service in made.values():
        assert "stop_signal" not in service
        assert seconds(service.get("stop_grace_period", "10s")) <= 60, "whoever stops the stack waits for all of it"
    assert seconds(made["api"]["stop_grace_period"]) >= 2 * _STREAMS_END_SECONDS
    assert made["worker"]["init"] is True, "as process 1 Python would ignore a SIGTERM that comes early"


def test_no_program_has_more_rights_than_it_needs() -> None:
    made = services()

    # The UI starts as root in a foreign folder.
    assert {name for name, service in made.items() if service.get("cap_drop") != ["ALL"]} == {"temporal-ui"}
    # Temporal's images name a user of their own, and so does ours.
    users = {name: service.get("user") for name, service in made.items() if "postgres:" in service.get("image", "")}
    assert users == dict.fromkeys(("postgres", "schema", "demo-catalogue"), "postgres")
    for service in made.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.keys().isdisjoint({"privileged", "cap_add", "pid", "ipc", "userns_mode"})


# The jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("schema", {"/sql/setup.sql": "./setup.sql", "/sql/roles.sql": "./deploy/compose/roles.sql"}),
        ("demo-catalogue", {"/sql/demo.sql": "./devstack/demo.sql"}),
    ],
)
def test_a_job_of_sql_runs_the_projects_own_files_and_stops_at_the_first_error(
    name: str, files: dict[str, str]
) -> None:
    job = services()[name]

    assert job["entrypoint"] == ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1"]
    assert job["command"] == [word for file in files for word in ("-f", file)]
    assert mounts(job) == files


def test_temporals_settings_are_mounted_where_it_reads_them() -> None:
    temporal = services()["temporal"]

    where = temporal["environment"]["DYNAMIC_CONFIG_FILE_PATH"]
    assert mounts(temporal) == {where: "./deploy/compose/dynamic-config.yaml"}
    assert yaml.safe_load((ROOT / "deploy/compose/dynamic-config.yaml").read_text(encoding="utf-8"))


def test_every_file_that_is_mounted_exists_cannot_be_written_and_is_made_by_nobody() -> None:
    entries = [entry for service in services().values() for entry in service.get("volumes", [])]
    files = [entry for entry in entries if isinstance(entry, dict)]

    assert len(files) == 4
    for entry in files:
        assert (ROOT / entry["source"]).is_file()
        assert entry["read_only"] is True
        # Otherwise Docker makes an empty folder of that name, and psql or Temporal reads a folder.
        assert (entry["type"], entry["bind"]) == ("bind", {"create_host_path": False, "selinux": "z"})


def test_both_of_temporals_databases_are_made_and_brought_up_to_date(tmp_path: Path) -> None:
    stub(tmp_path, "temporal-sql-tool", 'echo "$*" >> "$NOTES"')

    status, notes = run_script("temporal-schema", tmp_path)

    assert status == 0
    folders = {"DBNAME": "temporal", "VISIBILITY_DBNAME": "visibility"}
    assert notes == [
        line
        for variable, database in TEMPORALS_DATABASES.items()
        for line in (
            f"--db {database} create-database",
            f"--db {database} setup-schema -v 0.0",
            f"--db {database} update-schema -d /etc/temporal/schema/postgresql/v12/{folders[variable]}/versioned",
        )
    ]


@pytest.mark.parametrize("failing", range(1, 7))
def test_temporals_databases_that_cannot_be_made_end_the_job(failing: int, tmp_path: Path) -> None:
    stub(tmp_path, "temporal-sql-tool", f'echo "$*" >> "$NOTES"\n[ "$(wc -l < "$NOTES")" -ne {failing} ]')

    status, notes = run_script("temporal-schema", tmp_path)

    assert (status, len(notes)) == (1, failing)


@pytest.mark.parametrize(
    "never", ["operator cluster health", "operator namespace", "operator search-attribute create", "workflow count"]
)
def test_the_namespace_job_fails_when_one_of_its_steps_never_works(never: str, tmp_path: Path) -> None:
    # Each of the others works at its third try: who waits for one has its tries for the next one still.
    third = '[ "$(grep -cxF -- "$*" "$NOTES")" -ge 3 ]'
    stub(tmp_path, "temporal", f'echo "$*" >> "$NOTES"\ncase "$*" in "{never}"*) exit 1;; esac\n{third}')
    stub(tmp_path, "sleep", 'echo "sleep $*" >> "$NOTES"')

    status, notes = run_script("temporal-namespace", tmp_path)

    assert status == 1
    assert notes[-1].startswith(never), "it went on after a failure"
    assert sum(line.startswith(never) for line in notes) >= 60
    waited = sum(float(line.split()[1]) for line in notes if line.startswith("sleep "))
    assert waited >= 59, "it gave up before a server can be up"
    # A server that does not answer would be waited for in each try for as long as it likes.
    assert [line for line in notes if not re.search(r"^sleep | --command-timeout 10s\b", line)] == []


def test_the_namespace_keeps_histories_for_days(tmp_path: Path) -> None:
    stub(tmp_path, "temporal", 'echo "$*" >> "$NOTES"\ncase "$*" in "operator namespace describe"*) exit 1;; esac')

    status, notes = run_script("temporal-namespace", tmp_path)

    assert status == 0
    [created] = [line for line in notes if line.startswith("operator namespace create")]
    [hours] = re.findall(rf"--namespace {NAMESPACE} --retention (\d+)h ", created)
    assert int(hours) >= 72, "an incident of a Friday is looked into on Monday"
