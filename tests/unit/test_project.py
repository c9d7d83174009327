"""The project itself: which room may import which, and that the documents agree with the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sagafence
from adapters.config import EARLIER, PREFIX, ApiSettings, WorkerSettings
from devstack.stack import ROOT
from domain.version import RELEASE
from tests.shares import EVERY, LONGEST_FAULTS, SLOW_FILES, SLOW_TESTS

ROOMS = ("activities", "adapters", "client", "devstack", "domain", "http_api", "sagafence", "terminal", "workflows")
COMMANDS = ("api", "worker", "starter")
LIBRARY_ROOMS = ("sagafence", "sagafence_pytest")
MODULES = (*COMMANDS, "sagafence_pytest")

# Who may import what of ours. The bottom is the library, then `domain`.
ALLOWED = {
    "sagafence": {"sagafence"},
    "sagafence_pytest": {"sagafence"},
    "domain": {"domain", "sagafence"},
    "adapters": {"domain", "adapters", "sagafence"},
    "activities": {"domain", "adapters.database", "adapters.order_query", "activities", "sagafence"},
    "workflows": {"domain", "activities", "workflows", "sagafence"},
    "client": {"domain", "client", "adapters.config", "adapters.temporal", "sagafence"},
    "terminal": {"domain", "client", "terminal", "adapters.config", "adapters.terminal", "sagafence"},
    # It changes things through `client` alone, and reads Postgres through `adapters`.
    "http_api": {
        "domain",
        "client",
        "http_api",
        "sagafence",
        "adapters.config",
        "adapters.database",
        "adapters.order_query",
        "adapters.process_exit",
        "adapters.program",
        "adapters.temporal",
    },
    "devstack": {
        "domain.model",
        "domain.policies",
        "domain.version",
        "adapters.process_exit",
        "adapters.streams",
        "adapters.terminal",
        "devstack",
        "sagafence.devservers",
    },
    "api": {
        "domain",
        "sagafence",
        "http_api",
        "client.batcher",
        "adapters.config",
        "adapters.database",
        "adapters.process_exit",
        "adapters.program",
        "adapters.streams",
        "adapters.temporal",
        "adapters.temporal_credentials",
    },
    "worker": {"domain", "sagafence", "adapters", "activities", "workflows"},
    "starter": {
        "domain",
        "sagafence",
        "client",
        "terminal",
        "adapters.config",
        "adapters.log_setup",
        "adapters.process_exit",
        "adapters.streams",
    },
}

# Third parties that a room must not import.
FORBIDDEN = {
    "domain": {"sqlalchemy", "asyncpg", "temporalio.client", "temporalio.worker", "temporalio.workflow"},
    "activities": {"temporalio.client", "temporalio.workflow", "asyncpg"},
    "workflows": {"sqlalchemy", "asyncpg", "temporalio.client", "temporalio.activity"},
    "client": {"sqlalchemy", "asyncpg", "temporalio.activity", "temporalio.workflow", "typer", "rich"},
    "terminal": {"sqlalchemy", "asyncpg", "temporalio.activity", "temporalio.client", "temporalio.workflow"},
    "http_api": {"asyncpg", "temporalio.activity", "temporalio.worker", "temporalio.workflow"},
    "api": {"sqlalchemy", "asyncpg", "temporalio"},
    "starter": {"sqlalchemy", "asyncpg"},
}

# What each part of the library may import beside Python itself. What a workflow needs does without a database.
LIBRARY = {
    "sagafence": {"sagafence", "temporalio"},
    "sagafence.database": {"sagafence", "temporalio", "sqlalchemy", "asyncpg"},
    "sagafence.__main__": {"sagafence", "sqlalchemy", "asyncpg"},  # one command alone, when it is given
    "sagafence.fence": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.local_steps": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.postgres": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.lost": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.registry": {"sagafence", "sqlalchemy"},
    "sagafence.unwinding": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.retention": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.schema": {"sagafence", "sqlalchemy"},
    "sagafence.bound_external": {"sagafence", "sqlalchemy"},
    "sagafence.external_steps": {"sagafence", "temporalio", "sqlalchemy"},
    "sagafence.testing": {"sagafence.testing", "temporalio"},
    "sagafence.testing.commits": {"sagafence.testing", "temporalio", "sqlalchemy"},  # in the cases that need it
    "sagafence.devservers": {"sagafence.devservers", "psutil"},
    "sagafence_pytest": {"sagafence.testing", "sagafence.devservers", "temporalio", "sqlalchemy", "pytest"},
}


def sources(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if room in MODULES else sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{name.name}" for name in node.names)


def is_under(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    ours = {*ROOMS, *MODULES, "tests", "benchmarks"}

    strays = {
        f"{path.name} imports {module}"
        for path in sources(room)
        for module in imports(path)
        if is_under(module, ours) and not is_under(module, ALLOWED[room])
    }

    assert strays == set()


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_imports_no_third_party_that_is_forbidden_there(room: str) -> None:
    strays = {
        f"{path.name} imports {module}"
        for path in sources(room)
        for module in imports(path)
        if is_under(module, FORBIDDEN[room])
    }

    assert strays == set()


def test_the_starter_loads_nothing_that_could_reach_the_database() -> None:
    loaded = "import starter, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"sqlalchemy", "asyncpg", "activities", "workflows"}


def test_the_test_kit_loads_no_database() -> None:
    loaded = "import sagafence.testing.plays, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"sqlalchemy", "asyncpg"}


def test_the_api_loads_nothing_that_could_do_a_step() -> None:
    loaded = "import api, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"activities", "workflows", "worker", "terminal", "devstack"}


def test_the_library_imports_nothing_of_the_checkout_and_in_a_workflow_no_database() -> None:
    def part(path: Path) -> str:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        return next(name for name in (name, name.rpartition(".")[0], "sagafence") if name in LIBRARY)

    strays = {
        f"{path.relative_to(ROOT)} imports {module}"
        for room in LIBRARY_ROOMS
        for path in sources(room)
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names and not is_under(module, LIBRARY[part(path)])
    }

    assert strays == set()


def test_the_checkout_uses_the_public_names_of_the_library_alone() -> None:
    public = {f"sagafence.{name}" for name in sagafence.__all__}
    strays = {
        f"{room} imports {module}"
        for room in (*ROOMS, *COMMANDS)
        if room not in LIBRARY_ROOMS
        for path in sources(room)
        for module in imports(path)
        if is_under(module, {"sagafence"}) and module not in public and not is_under(module, {"sagafence.devservers"})
    }

    assert strays == set()


def test_every_room_and_command_has_a_rule() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    commands = {path.stem for path in ROOT.glob("*.py")}

    assert rooms | commands == set(ALLOWED)


def test_the_library_knows_no_shop_words() -> None:
    shop_words = re.compile(
        r"\b(order|customer|stock|inventory|payment|shipment|parcel|sku|refund|checkout)s?\b", re.IGNORECASE
    )

    for path in (path for room in LIBRARY_ROOMS for path in sources(room)):
        text = path.read_text(encoding="utf-8")
        # "in reverse order", "checkout" as this project's name: none of it should be needed. SQL has no other word.
        assert shop_words.findall(text.replace("ORDER BY", "")) == [], path


def test_no_file_is_longer_than_350_lines() -> None:
    longest = {
        str(path.relative_to(ROOT)): lines
        for room in (*ROOMS, *MODULES)
        for path in sources(room)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }

    assert longest == {}


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_make_target_that_the_documents_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))

    named = {
        (path.name, target)
        for path in documents()
        for target in re.findall(r"\bmake ([a-z-]+)\b", path.read_text(encoding="utf-8"))
        if f"`make {target}" in path.read_text(encoding="utf-8")
        or re.search(rf"^\s*(\$ )?make {target}\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert {(name, target) for name, target in named if target not in targets} == set()
    assert {target for _, target in named} >= {"demo", "test", "lint", "up"}


def test_every_starter_command_that_the_documents_name_exists_and_every_one_is_documented() -> None:
    source = (ROOT / "starter.py").read_text(encoding="utf-8")
    commands = set(re.findall(r"^@app\.command\([^\n]*\)\ndef (\w+)\(", source, re.MULTILINE))
    commands = {"list" if name == "list_orders" else name for name in commands}
    commands |= set(re.findall(r"^app\.command\(\"(\w+)\"", source, re.MULTILINE))

    named = {
        command
        for path in documents()
        for command in re.findall(r"starter\.py (\w+)", path.read_text(encoding="utf-8"))
    }

    assert commands >= {"start", "status", "list", "cancel", "retry", "resolve", "audit", "sweep", "load"}
    assert named - commands == set()
    assert commands - named == set()


def test_every_option_that_the_documents_give_the_starter_exists() -> None:
    source = "\n".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("starter.py", "terminal/options.py", "terminal/load/command.py")
    )
    known = set(re.findall(r'"(--[a-z-]+)', source)) | {"--help", "--no-wait", "--wait"}
    known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): Annotated\[", source, re.MULTILINE)}

    named = {
        option
        for path in documents()
        for line in re.findall(r"starter\.py [^\n`]*", path.read_text(encoding="utf-8"))
        for option in re.findall(r"(--[a-z-]+)", line)
    }

    assert named - known == set()


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    settings = {PREFIX + name.upper() for name in WorkerSettings.model_fields | ApiSettings.model_fields}
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents())

    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", text))

    assert named - set(EARLIER) == settings


def linking() -> list[Path]:
    """Give the documents, and those that have links of ours beside them."""
    beside = ("CHANGELOG.md", "sagafence/README.md", "sagafence/CHANGELOG.md", "examples/workspace/README.md")
    return [*documents(), *(ROOT / name for name in beside)]


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    broken = {
        f"{path.name}: {target}"
        for path in linking()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not (path.parent / target).exists()
    }

    assert broken == set()


def test_every_anchor_in_the_documents_is_a_heading() -> None:
    def anchors(path: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    broken = {
        f"{path.name}: {target}#{anchor}"
        for path in linking()
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", path.read_text(encoding="utf-8"))
        if anchor not in anchors(path.parent / target if target else path)
    }

    assert broken == set()


def test_what_the_index_of_symptoms_quotes_is_what_the_code_says() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [index] = re.findall(r"^## What you see, and where to go\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (.*) \| (.*\]\(.*\).*) \|$", index, re.MULTILINE)
    said = "\n".join(path.read_text(encoding="utf-8") for room in (*ROOMS, *COMMANDS) for path in sources(room))

    quoted = {quote for seen, _ in rows for quote in re.findall(r"`([^`]+)`", seen)} - {"TMPRL1100"}  # the SDK says it

    assert len(rows) > 15
    assert {quote for quote in quoted if quote not in said} == set()


def test_every_test_that_the_readme_points_at_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    missing = {
        f"{path}::{name}"
        for path, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", text)
        if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    }

    assert missing == set()
    assert len(re.findall(r"tests/[\w/]+\.py::test_\w+", text)) >= 8


def test_every_test_of_which_make_test_runs_a_share_exists_once() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_*.py"))

    named = {*EVERY, *SLOW_TESTS, *LONGEST_FAULTS}
    found = {name: len(re.findall(rf"^(?:async )?def {name}\(", source, re.MULTILINE)) for name in named}

    assert found == dict.fromkeys(named, 1)
    assert {path.stem for path in (ROOT / "tests").glob("*/test_*.py")} >= SLOW_FILES


def test_ci_runs_what_make_test_leaves_out_and_makes_what_strangers_get() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert [f"make {target}" in script.splitlines() for target in ("lint", "test", "docs", "wheel", "slow")] == [
        True
    ] * 5


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for target in phony.split():
        assert f"make {target} " in shown


def test_the_locks_hold_the_versions_that_the_project_asks_for() -> None:
    pins = {
        lock: dict(
            re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
        )
        for lock in (
            "requirements/runtime.lock",
            "requirements/embedded.lock",
            "requirements/dev.lock",
            "requirements/bench.lock",
        )
    }

    assert pins["requirements/runtime.lock"].items() <= pins["requirements/embedded.lock"].items()
    assert pins["requirements/embedded.lock"].items() <= pins["requirements/dev.lock"].items()
    assert pins["requirements/dev.lock"].items() <= pins["requirements/bench.lock"].items()
    assert {"temporalio", "sqlalchemy", "asyncpg"} <= set(pins["requirements/runtime.lock"])
    for lock in pins:
        entries = re.split(r"^(?=\S)", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        assert [entry for entry in entries if "--hash=sha256:" not in entry] == [], lock


def test_every_install_takes_the_lock_file_alone() -> None:
    """Old versions of pip look for newer releases of what is asked for with an extra, and then refuse them."""
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8") + (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in recipes.splitlines() if "pip install" in line]

    assert len(installs) == 6
    assert [line for line in installs if "--no-deps --require-hashes -r requirements" not in line] == []


def test_the_locks_name_all_that_their_packages_ask_for() -> None:
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize("command", [["api.py"], ["starter.py"], ["worker.py"], ["-m", "devstack"]], ids=" ".join)
def test_every_command_prints_the_release(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == f"{RELEASE}\n"
