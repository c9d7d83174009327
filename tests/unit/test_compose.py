"""The files for people who have Docker: checked here without it, and the jobs' commands run on real servers."""

import ast
import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from adapters.config import DEFAULT_TEMPORAL_ADDRESS, DEFAULT_UI_URL, ApiSettings, WorkerSettings, load
from devstack.stack import ROOT, DevStack, psql
from domain.policies import SEARCH_ATTRIBUTES
from sagafence.devservers import temporal
from tests.unit.compose_file import COMPOSE_FILE, VARIABLE, required, services, variables
from tests.unit.image_files import copies, dockerfile, make_image

_SERVERS = {"postgres", "temporal", "temporal-ui", "worker", "api"}
_JOBS = {"schema", "demo-catalogue", "temporal-schema", "temporal-namespace"}


def _check_schema(document: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(document)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _copied() -> set[str]:
    """Name the files and folders that the image gets."""
    return {source.rstrip("/") for sources, _ in copies() for source in sources}


def _imported_by(*programs: str) -> set[str]:
    """Name every file of the project that the programs import, directly or not."""
    seen: set[str] = set()
    waiting = list(programs)
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            else:
                continue
            paths = [module.replace(".", "/") for module in modules]
            candidates = [path + end for path in paths for end in (".py", "/__init__.py")]
            waiting += [candidate for candidate in candidates if (ROOT / candidate).is_file()]
    return seen


def test_the_compose_file_follows_the_compose_specification() -> None:
    done = _check_schema(COMPOSE_FILE)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("depends_on:", "depend_on:"),
        ("condition: service_healthy", "condition: service_is_healthy"),
        ("read_only: true", "read_only: [1]"),
        ("services:", "service:"),
    ],
)
def test_a_compose_file_with_a_mistake_is_refused(tmp_path: Path, right: str, wrong: str) -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    assert right in text
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")

    done = _check_schema(broken)

    assert done.returncode == 1
    assert "Schema validation errors" in done.stdout


def test_every_service_is_a_server_that_is_kept_running_or_a_job_that_runs_once() -> None:
    made = services()
    assert {name for name, service in made.items() if service["restart"] == "unless-stopped"} == _SERVERS
    assert {name for name, service in made.items() if service["restart"] == "no"} == _JOBS


def test_a_service_waits_for_the_health_of_servers_and_the_success_of_jobs() -> None:
    made = services()
    waits = [
        (needed, wait["condition"])
        for service in made.values()
        for needed, wait in service.get("depends_on", {}).items()
    ]

    assert waits
    for needed, condition in waits:
        if needed in _JOBS:
            assert condition == "service_completed_successfully"
        else:
            assert condition == "service_healthy"
            assert "healthcheck" in made[needed]


def test_programs_on_this_machine_find_what_compose_started_where_they_look_for_it() -> None:
    made = services()
    [postgres] = made["postgres"]["ports"]
    [frontend] = made["temporal"]["ports"]
    [ui] = made["temporal-ui"]["ports"]
    database = made["schema"]["environment"]["PGDATABASE"]

    assert frontend == f"{DEFAULT_TEMPORAL_ADDRESS}:7233"
    assert f"http://{ui}" == f"{DEFAULT_UI_URL}:8080"
    assert postgres.endswith(":5432")
    assert WorkerSettings.model_fields["database_url"].default.get_secret_value() == (
        f"postgresql+asyncpg://checkout:checkout@{postgres.removesuffix(':5432')}/{database}"
    )


def test_env_example_lists_every_variable_of_the_compose_file_with_its_default() -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    listed = re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(variables().items()) == sorted(listed)
    assert "$" not in VARIABLE.sub("", text).replace("$$", ""), "a variable without a default"


def test_there_is_no_default_password_and_no_port_without_one() -> None:
    found = VARIABLE.findall(COMPOSE_FILE.read_text(encoding="utf-8"))
    output = {said for _, kind, said in found if kind == "?"}

    passwords = {name for name in variables() if "PASSWORD" in name}
    people = {"POSTGRES_OPERATOR_PASSWORD"}  # nobody logs in without
    assert required() == passwords - people
    assert [name for name, kind, _ in found if name in required() and kind != "?"] == [], "a default in one place"
    assert people <= passwords
    assert {variables()[name] for name in passwords} == {""}
    [said] = output
    assert "passwords.sh" in said
    assert (ROOT / "deploy/compose/passwords.sh").is_file()


def _in_a_copy(folder: Path) -> Path:
    """Put the script and the example where they find each other, and nobody's .env is."""
    (folder / "deploy/compose").mkdir(parents=True)
    shutil.copy(ROOT / ".env.example", folder)
    return Path(shutil.copy(ROOT / "deploy/compose/passwords.sh", folder / "deploy/compose"))


def test_the_script_makes_a_password_for_each_role_and_keeps_it(tmp_path: Path) -> None:
    script = _in_a_copy(tmp_path)
    made = []
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True, capture_output=True, cwd="/")
        made.append((tmp_path / ".env").read_text(encoding="utf-8"))
    values = dict(line.split("=", 1) for line in made[0].splitlines() if line and not line.startswith("#"))

    assert made[0] == made[1], "a password that the volume has would be lost"
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    passwords = [values[name] for name in required()]
    assert len(set(passwords)) == len(passwords) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords), "a URL has to hold it"
    example = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    others = [line for line in made[0].splitlines() if line.partition("=")[0] not in required()]
    assert others == [line for line in example if line.partition("=")[0] not in required()]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".env", ".env.example", "deploy"]


def test_the_script_fills_in_what_somebody_left_empty(tmp_path: Path) -> None:
    script = _in_a_copy(tmp_path)
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=mine\nPOSTGRES_TEMPORAL_PASSWORD=", encoding="utf-8")

    subprocess.run(["sh", str(script)], check=True, capture_output=True)

    mine, filled, *added = (tmp_path / ".env").read_text(encoding="utf-8").splitlines()
    assert mine == "POSTGRES_PASSWORD=mine"
    assert re.fullmatch(r"POSTGRES_TEMPORAL_PASSWORD=[0-9a-f]{48}", filled)
    # What a release before did not need.
    assert [re.sub(r"=[0-9a-f]{48}$", "=made", line) for line in added] == [
        "POSTGRES_CHECKOUT_PASSWORD=made",
        "POSTGRES_READER_PASSWORD=made",
    ]


def test_env_example_names_nothing_that_the_service_would_take_for_its_own_setting() -> None:
    """Somebody may export the file's variables; the worker refuses a CHECKOUT_ variable that it does not know."""
    names = re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)

    assert [name for name in names if name.startswith("CHECKOUT_")] == []
    assert {"TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE"}.isdisjoint(names)


def test_the_workers_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHECKOUT_")]:
        monkeypatch.delenv(name)
    for name, value in services()["worker"]["environment"].items():
        monkeypatch.setenv(name, value)

    assert load(WorkerSettings).database_url.get_secret_value() == (
        "postgresql+asyncpg://checkout:the.required.postgres_checkout_password@postgres:5432/checkout"
    )


def test_the_apis_settings_are_accepted_and_others_find_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHECKOUT_")]:
        monkeypatch.delenv(name)
    [published] = services()["api"]["ports"]
    default = load(ApiSettings)
    for name, value in services()["api"]["environment"].items():
        monkeypatch.setenv(name, value)

    made = load(ApiSettings)

    assert made.database_url.get_secret_value() == (
        "postgresql+asyncpg://checkout_reader:the.required.postgres_reader_password@postgres:5432/checkout"
    )
    assert published == f"{default.api_host}:{default.api_port}:{made.api_port}"


def test_the_search_attributes_are_those_of_the_policies() -> None:
    [script] = services()["temporal-namespace"]["command"]
    created = dict(re.findall(r"--name (\w+) --type (\w+)", script))

    assert created == SEARCH_ATTRIBUTES
    assert re.findall(r"--name (\w+)", script) == list(created), "a name without a type is left out in silence"
    for name in SEARCH_ATTRIBUTES:
        assert f"{name} IS NULL" in script, "the job ends before the attribute can be used"


def test_the_server_is_tuned_as_the_embedded_one() -> None:
    text = (ROOT / "deploy/compose/dynamic-config.yaml").read_text(encoding="utf-8")
    settings = {name: value["value"] for name, [value] in yaml.safe_load(text).items()}

    assert settings == temporal._TUNING


def test_the_namespace_job_may_run_again(stack: DevStack) -> None:
    job = services()["temporal-namespace"]
    environment = {
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        **job["environment"],
        "TEMPORAL_ADDRESS": stack.temporal.address,
        "TEMPORAL_NAMESPACE": "compose-job",
    }

    for _ in range(2):
        done = subprocess.run(
            [*job["entrypoint"], *job["command"]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

        assert done.returncode == 0, done.stdout + done.stderr
        assert "Total: 0" in done.stdout


_PASSWORD_OF = {
    "checkout": "CHECKOUT_ROLE_PASSWORD",
    "temporal": "TEMPORAL_ROLE_PASSWORD",
    "checkout_reader": "READER_ROLE_PASSWORD",
    "checkout_operator": "OPERATOR_ROLE_PASSWORD",
}
"""The variable of the schema job that has a role's password."""


def _has_password(verifier: str, password: str) -> bool:
    """Tell whether Postgres, which keeps `SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER`, would let this one in."""
    _, parameters, keys = verifier.split("$")
    iterations, salt = parameters.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return base64.b64encode(stored).decode() == keys.split(":")[0]


def test_the_schema_job_may_run_again_and_sets_each_roles_own_password(stack: DevStack) -> None:
    job = services()["schema"]
    sources = {mount["target"]: str(ROOT / mount["source"]) for mount in job["volumes"]}
    program, *options = job["entrypoint"]
    database = "compose_job"
    environment = {
        "PATH": os.environ["PATH"],
        **job["environment"],
        "PGHOST": "127.0.0.1",
        "PGPORT": str(stack.postgres.port),
        "PGDATABASE": database,
        "PGPASSWORD": stack.postgres.passwords.of("postgres"),
    }
    roles = "SELECT rolname, rolpassword, rolcanlogin, rolcreatedb, rolsuper FROM pg_authid"
    psql(stack.postgres, "postgres", "-c", f"CREATE DATABASE {database}")
    try:
        # Another password at the next `up` is the one that counts from then on.
        for time in ("first", "second"):
            passwords = {role: f"{time}.{role}" for role in ("checkout", "checkout_reader", "temporal")}
            if time == "second":  # nobody has to have people who log in
                passwords["checkout_operator"] = f"{time}.checkout_operator"
            done = subprocess.run(
                [
                    str(stack.postgres.bin(program)),
                    *options,
                    *(sources.get(word, word) for word in job["command"]),
                ],
                env=environment | {_PASSWORD_OF[role]: password for role, password in passwords.items()},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

            assert done.returncode == 0, done.stderr
            printed = psql(
                stack.postgres,
                database,
                "-Atc",
                f"{roles} WHERE rolpassword IS NOT NULL AND rolname <> 'postgres' ORDER BY 1",
            )
            made = [line.split("|") for line in printed.splitlines()]
            assert [(name, *rights) for name, _, *rights in made] == [
                (role, "t", "t" if role == "temporal" else "f", "f")  # Temporal makes its databases itself
                for role in sorted(passwords)
            ]
            for name, verifier, *_ in made:
                assert _has_password(verifier, passwords[name])
                assert passwords[name] not in done.stdout + done.stderr
                assert not _has_password(verifier, "checkout"), "any password is let in"
            others = ("postgres", "template1", "temporal", "temporal_visibility", database)
            open_to = "SELECT datname FROM pg_database WHERE has_database_privilege('{}', oid, 'CONNECT') ORDER BY 1"
            let_in = {
                role: [
                    name
                    for name in psql(stack.postgres, database, "-Atc", open_to.format(role)).split()
                    if name in others
                ]
                for role in ("checkout", "checkout_reader", "temporal")
            }
            assert let_in == {
                "checkout": [database],
                "checkout_reader": [database],
                "temporal": ["postgres", "temporal", "temporal_visibility"],
            }
    finally:
        for each in (database, "temporal", "temporal_visibility"):
            psql(stack.postgres, "postgres", "-c", f"DROP DATABASE IF EXISTS {each}")
        for each in ("postgres", "template1"):
            psql(stack.postgres, "postgres", "-c", f"GRANT CONNECT, TEMPORARY ON DATABASE {each} TO PUBLIC")
        psql(stack.postgres, "postgres", "-c", "REVOKE CONNECT ON DATABASE postgres FROM temporal")
        people = [f"ALTER ROLE {role} PASSWORD NULL" for role in ("checkout_operator", "checkout_reader")]
        services_own = ["ALTER ROLE checkout PASSWORD 'checkout'", "DROP ROLE temporal"]
        psql(stack.postgres, "postgres", *(word for each in (*people, *services_own) for word in ("-c", each)))


def test_no_password_gets_into_the_servers_log_whatever_it_logs_and_whatever_fails(stack: DevStack) -> None:
    logged = stack.postgres.log.stat().st_size
    done = subprocess.run(
        # On after each error, with a server that logs every statement and lets none of them change anything.
        [str(stack.postgres.bin("psql")), "--no-psqlrc", "-f", str(ROOT / "deploy/compose/roles.sql")],
        env={
            **stack.postgres.client_environment(),
            **{name: f"the.secret.of.{role}" for role, name in _PASSWORD_OF.items()},
            "PGHOST": "127.0.0.1",
            "PGPORT": str(stack.postgres.port),
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGOPTIONS": "-c default_transaction_read_only=on -c log_statement=all -c log_min_duration_statement=0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    with stack.postgres.log.open(encoding="utf-8") as log:
        log.seek(logged)
        output = log.read()
    assert done.stderr.count("read-only transaction") >= len(_PASSWORD_OF), "each of them was tried"
    assert "SET log_statement = 'none'" in output, "the server logs what it is sent"
    assert "the.secret.of" not in output + done.stdout + done.stderr


@pytest.mark.parametrize("job", ["temporal-schema", "temporal-namespace"])
def test_the_scripts_of_the_jobs_are_shell_that_ends_at_the_first_error(job: str) -> None:
    service = services()[job]
    [script] = service["command"]

    assert service["entrypoint"] == ["/bin/sh", "-euc"]
    assert subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_every_path_that_the_dockerfile_copies_exists_and_is_let_in() -> None:
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert [path for path in _copied() if not (ROOT / path).exists()] == []
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == _copied()


def test_the_image_has_every_file_that_its_programs_need() -> None:
    needed = _imported_by("worker.py", "starter.py", "api.py", "http_api/keys.py") | {"activities/audit.sql"}

    assert {"sagafence/__init__.py", "adapters/config.py", "domain/policies.py"} <= needed
    assert (ROOT / "activities/audit.sql").is_file()
    assert {Path(file).parts[0] for file in needed} | {"requirements/runtime.lock", "web"} == _copied()


@pytest.mark.parametrize("program", ["worker.py", "starter.py", "api.py", "http_api.keys"])
def test_the_programs_find_all_that_they_import_in_what_the_image_gets(program: str, tmp_path: Path) -> None:
    image = tmp_path / "app"
    make_image(image)

    command = [program] if program.endswith(".py") else ["-m", program]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=image, env={}, capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stderr.splitlines()[-1:]
    assert (image / "activities/audit.sql").is_file()


def test_the_image_is_of_a_python_that_is_tested_and_runs_where_the_code_is() -> None:
    instructions = dockerfile()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [(oldest, newest)] = re.findall(r"Python 3\.(\d+) to 3\.(\d+) on Linux is what the tests run on", readme)
    [python] = re.findall(
        r"^FROM python:3\.(\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}$",
        (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    at = {instruction: number for number, (instruction, *_) in enumerate(instructions)}

    assert int(oldest) <= int(python) <= int(newest)
    assert [words for words in instructions if words[0] in {"WORKDIR", "FROM"}][1:] == [["WORKDIR", "/app"]]
    assert at["WORKDIR"] < min(number for number, words in enumerate(instructions) if words[0] == "COPY")
    assert at["USER"] > max(number for number, words in enumerate(instructions) if words[0] in {"COPY", "RUN"})


def test_the_image_installs_only_what_the_lock_file_names() -> None:
    installs = [words for words in dockerfile() if "install" in words and "pip" in words]

    assert len(installs) == 1
    assert installs[0][-4:] == ["--no-deps", "--require-hashes", "-r", "requirements/runtime.lock"]


def test_the_image_ends_as_a_user_without_rights() -> None:
    *_, last = [words for words in dockerfile() if words[0] == "USER"]
    [create] = [words for words in dockerfile() if "useradd" in words]
    uid = create[create.index("--uid") + 1]

    assert int(uid) >= 1000
    assert last == ["USER", f"{uid}:{uid}"]


def test_signals_reach_python_and_not_a_shell() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")

    assert text.endswith('CMD ["python", "worker.py"]\n')
    assert "ENTRYPOINT" not in text
    assert "PYTHONUNBUFFERED=1" in text
