"""Postgres cannot write any more, for a while, while orders stream in: they wait, and end as they would have.

A real full disk takes a file system of its own, and so the right to mount one. Where there is that right, a small
one holds the whole cluster and is filled to its last byte: statements end with 53100, and a new segment of the
write-ahead log cannot be had, which Postgres answers with a crash (PANIC).

What runs everywhere is a limit on the size of files (RLIMIT_FSIZE), above that of a log segment, which a table has
reached. It covers tables that cannot grow, the commonest sign of a full disk; but Postgres then reports EFBIG, as
XX000, and the log can still be written.
"""

import asyncio
import errno
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from devstack.stack import DevStack
from tests.faults.sites import Site, open_site, said, until

pytestmark = pytest.mark.timeout(600)

FULL_FOR_SECONDS = 2.0
# Above a segment of the write-ahead log, 16 MiB, which has to stay writable.
_ROWS_BEYOND_A_SEGMENT = 11_000
_SEGMENT_BYTES = 16 * 1024 * 1024
_SMALL_DISK = "192m"

Disk = Callable[[Site, Counter[str]], AbstractAsyncContextManager[None]]


async def outgrow_a_segment(site: Site) -> None:
    """Make the fence's table larger than a segment of the log; it takes seconds, so before orders come in."""
    await site.database.run(
        "INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint) "
        "SELECT 'filler-' || n, 'filler', 'undone', false, repeat(md5(n::text), 30) "
        f"FROM generate_series(1, {_ROWS_BEYOND_A_SEGMENT}) AS n;"
        # What is free in the pages would last for many orders: count every page as full.
        "ALTER TABLE step_fence SET (autovacuum_enabled = off, fillfactor = 10)"
    )


@asynccontextmanager
async def file_size_limit(site: Site, fired: Counter[str]) -> AsyncIterator[None]:
    """Let no file of Postgres grow beyond what the fence's table has reached."""
    size: int = await site.database.value("SELECT pg_relation_size('step_fence')")
    assert size > _SEGMENT_BYTES
    limit_files(site, size)
    try:
        yield
        fired["statements refused"] = sum(said(worker, "could not extend file") for worker in site.workers)
    finally:
        limit_files(site, resource.RLIM_INFINITY)
    await site.database.run(
        "DELETE FROM step_fence WHERE saga_id LIKE 'filler-%'; "
        "ALTER TABLE step_fence SET (autovacuum_enabled = on, fillfactor = 70)"
    )


def limit_files(site: Site, size: int) -> None:
    """Limit the files of the server's processes, acting as their user: only that one, or root with a right, may."""
    postmaster = psutil.Process(site.stack.postgres.pid)

    def limit() -> None:
        for process in (postmaster, *postmaster.children()):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    subprocess.run(["true"], check=True, user=postmaster.uids().real, group=postmaster.gids().real, preexec_fn=limit)


@asynccontextmanager
async def full_file_system(site: Site, fired: Counter[str]) -> AsyncIterator[None]:
    """Fill the file system that holds the cluster, and have Postgres need a new segment of its log."""
    filler = site.stack.folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                fired["bytes taken"] += file.write(b"\0" * 4096)
        except OSError as full:
            assert full.errno == errno.ENOSPC  # noqa: PT017 - the way the loop has to end
    try:
        yield
        await until(lambda: crashed_for_want_of_a_segment(site), "Postgres has crashed for want of a log segment")
        fired["crashes"] += 1
        fired["attempts failed"] = sum(said(worker, "WARNING sagafence.database") for worker in site.workers)
    finally:
        filler.unlink()
    await until(lambda: is_back(site), "Postgres is back")


async def has_struck(site: Site) -> bool:
    refused = sum(said(worker, "could not extend file") for worker in site.workers)
    return refused >= 3 or "PANIC" in site.stack.postgres.log.read_text(errors="replace")


async def crashed_for_want_of_a_segment(site: Site) -> bool:
    """Have a new segment begun, until that is one too many."""
    with suppress(asyncpg.PostgresError, OSError):
        await site.database.run("SELECT pg_logical_emit_message(false, 'filler', 'x'); SELECT pg_switch_wal()")
    return "PANIC" in site.stack.postgres.log.read_text(errors="replace")


async def is_back(site: Site) -> bool:
    """Start Postgres as often as it takes, as a supervisor would.

    A server that could not even recover ends, but not at once: it may look alive until long after there is room again.
    """
    site.stack.postgres.start()
    with suppress(asyncpg.PostgresError, OSError):
        return bool(await site.database.value("SELECT true"))
    return False


def may_mount() -> bool:
    """Whether this process may mount a file system; asked once, to know which tests there are."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=False, capture_output=True)
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return mounted.returncode == 0


DISKS: dict[str, Disk] = {"file-size-limit": file_size_limit}
if shutil.which("mount") and may_mount():
    DISKS["full-file-system"] = full_file_system


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.exhaustive) for name in DISKS])
def disk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def servers(disk: str, tmp_path: Path) -> Iterator[DevStack]:
    """Servers of this test alone, on a disk that it may fill."""
    folder = Path(tempfile.mkdtemp(prefix="checkout-disk-"))
    folder.chmod(0o755)  # Postgres may run as another user
    is_small = disk == "full-file-system"
    if is_small:
        options = f"size={_SMALL_DISK},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        stack = DevStack(folder)
        stack.postgres.log = tmp_path / "postgres.log"  # it has to report what it cannot write
        with stack:
            yield stack
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder)


@pytest.fixture
async def site(servers: DevStack, disk: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(servers, tmp_path) as opened:
        if disk == "file-size-limit":
            await outgrow_a_segment(opened)
        yield opened


async def test_a_full_disk_delays_orders_and_costs_none(site: Site, fired: Counter[str], disk: str) -> None:
    await site.ready_worker()
    async with site.under_load() as load, DISKS[disk](site, fired):
        # A table that cannot grow, or a log that cannot: which of the two comes first depends on what is left.
        await until(lambda: has_struck(site), "Postgres cannot write")
        fired["orders in flight"] = len(load.open)
        await asyncio.sleep(FULL_FOR_SECONDS)
