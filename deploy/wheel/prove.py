"""Build the library's wheel, and prove it where nothing of the checkout is.

    make wheel
    .venv/bin/python deploy/wheel/prove.py --python python3.12 --python python3.13

For each interpreter: an environment of its own in a temporary folder, with what `requirements/dev.lock` has and the
wheel; then the tests of `deploy/wheel` and of the second saga, `examples/workspace`, in a copy. Status 1 if one fails.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements" / "dev.lock"
PLUGIN = "sagafence_pytest.py"
_WITHIN = frozenset({"sagafence", PLUGIN})


class Failed(Exception):
    """The wheel is not as it should be."""


def expected(root: Path) -> set[str]:
    """List the files that the wheel must have: all of the package that a checkout has, and the plugin."""
    sources = (path for path in (root / "sagafence").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {PLUGIN, *(path.relative_to(root).as_posix() for path in sources)}


def strays(wanted: set[str], found: Iterable[str]) -> list[str]:
    """List what a wheel lacks, and what it has beyond the package and its own metadata."""
    files = {name for name in found if not name.split("/")[0].endswith(".dist-info")}
    lacking = [f"the wheel lacks {name}" for name in sorted(wanted - files)]
    return lacking + [f"the wheel has {name} too" for name in sorted(files - wanted)]


def build(folder: Path) -> Path:
    """Build the wheel with the locked hatchling of this environment, and look into it."""
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder], ROOT)
    [wheel] = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    if problems := strays(expected(ROOT), names):
        raise Failed("\n".join(problems))
    say(f"{wheel.name}: {len(names)} files, nothing beside {' and '.join(sorted(_WITHIN))}")
    return wheel


def install(interpreter: str, wheel: Path, folder: Path) -> Path:
    """Make an environment with the locked packages and the wheel, and return its Python."""
    run([interpreter, "-m", "venv", folder], folder.parent)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]
    run([*pip, "--only-binary=:all:", "--require-hashes", "-r", LOCK], folder.parent)
    run([*pip, "--no-index", wheel], folder.parent)
    return python


def prove(python: Path, folder: Path) -> None:
    """Run the tests of the installed library, and the example's, in a copy of theirs."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "*.log"))
    shutil.copy(ROOT / "deploy" / "wheel" / "test_installed.py", folder)
    where = run([python, "-c", "import sagafence, sys; print(sys.version.split()[0], sagafence.__file__)"], folder)
    version, _, place = where.strip().partition(" ")
    if not Path(place).is_relative_to(python.parent.parent):
        raise Failed(f"sagafence comes from {place}")
    schema = run([python, "-m", "sagafence", "schema"], folder)
    if "CREATE TABLE" not in schema:
        raise Failed(f"`python -m sagafence schema` prints no tables:\n{schema}")
    say(f"Python {version}: sagafence from its site-packages, {len(schema.splitlines())} lines of schema")
    tests: list[str | Path] = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests += ["-c", "examples/workspace/pytest.ini", "--rootdir", "examples/workspace"]
    for what, processes in (("test_installed.py", "0"), ("examples/workspace/tests", "3")):
        output = run([*tests, "-n", processes, what], folder)
        say(f"Python {version}: {what}: {output.strip().splitlines()[-1]}")


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command without a trace of the checkout in its environment, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL"))}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=kept,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # pytest stops its servers
            process.communicate()
            raise
    if process.returncode:
        raise Failed(f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{output}")
    return output


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main() -> int:
    """Build and prove, and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the library's wheel, and prove it outside of the checkout.")
    parser.add_argument("--python", action="append", help="an interpreter to prove it with; default: this one")
    interpreters = parser.parse_args().python or [sys.executable]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="sagafence-wheel-") as name:
        try:
            (built := Path(name, "dist")).mkdir()
            wheel = build(built)
            for number, interpreter in enumerate(interpreters):
                (folder := Path(name, str(number))).mkdir()
                prove(install(interpreter, wheel, folder / "venv"), folder)
        except Failed as failure:
            sys.stderr.write(f"{failure}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
