"""The second example is what readers copy: short, and on the library's public names alone."""

import ast
import sys
from pathlib import Path

import sagafence
from devstack.stack import ROOT

EXAMPLE = ROOT / "examples" / "workspace"
PRODUCT = ("model.py", "providers.py", "steps.py", "workflow.py", "worker.py")
PUBLIC = {
    "sagafence",
    *(f"sagafence.{name}" for name in sagafence.__all__),
}
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"sagafence"} | {"worker", "starter"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_the_saga_is_told_in_150_lines() -> None:
    lines = [line for name in PRODUCT for line in (EXAMPLE / name).read_text(encoding="utf-8").splitlines()]

    assert len([line for line in lines if line.strip()]) <= 150


def test_the_saga_uses_the_librarys_public_names_alone() -> None:
    used = {module for name in PRODUCT for module in imports(EXAMPLE / name) if module.split(".")[0] == "sagafence"}

    assert used - PUBLIC == set()
    assert used


def test_its_tests_and_its_demo_use_the_kit_and_the_servers_beside_them() -> None:
    strays = {
        f"{path.name} imports {module}"
        for path in EXAMPLE.rglob("*.py")
        for module in imports(path) - PUBLIC
        if module.split(".")[0] == "sagafence"
        and not module.startswith(("sagafence.testing.", "sagafence.devservers."))
    }

    assert strays == set()


def test_nothing_of_it_needs_the_checkout() -> None:
    strays = {
        f"{path.name} imports {module}"
        for path in EXAMPLE.rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in ROOMS
    }

    assert strays == set()


def test_the_provider_knows_neither_the_library_nor_anything_but_python() -> None:
    strays = {
        module
        for path in (EXAMPLE / "provider").glob("*.py")
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names and not module.startswith("examples.workspace.provider.")
    }

    assert strays == set()
