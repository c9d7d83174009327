"""Software bills of materials: one CycloneDX document for each lock file, with every package, its hashes and licence.

    make sbom

A lock file has names, versions and hashes for every platform; `cyclonedx-py` makes components of them. Licences are
told by the packages themselves, where they are installed. A document that lacks a package or a hash is an error.
"""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_OSI = "License :: OSI Approved :: "
_LONGEST_NAME = 64  # beyond that it is the licence's whole text

Package = tuple[str, str]


def pins(lock: str) -> dict[Package, frozenset[str]]:
    """Give every package of a lock file, by name and version, with the hashes of its files."""
    found: dict[Package, set[str]] = {}
    current: set[str] = set()
    for line in lock.splitlines():
        if pin := _PIN.match(line):
            current = found.setdefault((_normal(pin["name"]), pin["version"]), set())
        current.update(_HASH.findall(line))
    return {package: frozenset(hashes) for package, hashes in found.items()}


def licence(metadata: Mapping[str, str], classifiers: Iterable[str]) -> str:
    """Give the licence that a package tells: an expression, a name, or an empty text."""
    if expression := metadata.get("License-Expression"):
        return expression
    named = metadata.get("License", "").strip()
    if named and "\n" not in named and len(named) <= _LONGEST_NAME and named != "UNKNOWN":
        return named
    approved = [each.removeprefix(_OSI) for each in classifiers if each.startswith(_OSI)]
    return " OR ".join(approved)


def lacks(document: Mapping[str, Any], wanted: Mapping[Package, frozenset[str]]) -> list[str]:
    """Say what a document does not have of a lock file, or has beyond it."""
    made = {
        (_normal(component["name"]), component.get("version", "")): frozenset(
            digest["content"]
            for reference in component.get("externalReferences", ())
            for digest in reference.get("hashes", ())
        )
        for component in document.get("components", ())
    }
    problems = [f"{name} {version} is missing" for name, version in sorted(wanted.keys() - made.keys())]
    problems += [f"{name} {version} is in no lock file" for name, version in sorted(made.keys() - wanted.keys())]
    problems += [
        f"{name} {version} has not the hashes of the lock file"
        for name, version in sorted(wanted.keys() & made.keys())
        if not wanted[name, version] or made[name, version] != wanted[name, version]
    ]
    return problems


def main(folders: list[str]) -> int:
    """Write sbom/NAME.cdx.json for each lock file; the arguments are folders of installed packages."""
    told = _licences(folders)
    (ROOT / "sbom").mkdir(exist_ok=True)
    failed = False
    for lock in sorted(ROOT.glob("requirements/*.lock")):
        wanted = pins(lock.read_text(encoding="utf-8"))
        document = _components(lock)
        known = 0
        for component in document["components"]:
            component.pop("description", None)  # the line of the lock file
            if name := told.get((_normal(component["name"]), component["version"])):
                component["licenses"] = [{"license": {"name": name}}]
                known += 1
        problems = lacks(document, wanted) + _invalid(document)
        for problem in problems:
            sys.stderr.write(f"{lock.name}: {problem}\n")
        failed = failed or bool(problems)
        target = ROOT / "sbom" / f"{lock.stem}.cdx.json"
        target.write_text(f"{json.dumps(document, indent=1, sort_keys=True)}\n", encoding="utf-8")
        sys.stdout.write(f"{target.relative_to(ROOT)}: {len(wanted)} packages, {known} of them tell their licence\n")
    return 1 if failed else 0


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licences(folders: list[str]) -> dict[Package, str]:
    found = {}
    for installed in distributions(path=folders):
        metadata = installed.metadata
        told = licence(
            {key: metadata[key] for key in ("License-Expression", "License") if key in metadata},
            metadata.get_all("Classifier") or [],
        )
        found[_normal(metadata["Name"]), installed.version] = told
    return found


def _components(lock: Path) -> dict[str, Any]:
    made = subprocess.run(  # noqa: S603 - our own arguments
        [
            *(sys.executable, "-m", "cyclonedx_py", "requirements", str(lock)),
            *("--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application"),
            *("--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    document: dict[str, Any] = json.loads(made.stdout)
    return document


def _invalid(document: Mapping[str, Any]) -> list[str]:
    """Ask CycloneDX's own validator."""
    schema = importlib.import_module("cyclonedx.schema").SchemaVersion.V1_6
    validator = importlib.import_module("cyclonedx.validation.json").JsonStrictValidator(schema)
    error = validator.validate_str(json.dumps(document))
    return [f"not as CycloneDX 1.6 has it: {error}"] if error else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
