"""Puts each mutant into a copy of the project, several at once, and sees whether its killer notices."""

import queue
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.run import HANG_SECONDS, HARD_LIMIT_SECONDS, TEST_SECONDS, Run, Verdict, judge, run_tests

Killer = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `note` says what killed it, or why nothing was learned."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    note: str = ""
    output: str = ""


class Campaign:
    """Runs mutants of the project at `root`.

    Args:
        root: the project; only read.
        files: what a copy is made of, relative to `root`.
        jobs: how many copies are worked on at once.
    """

    def __init__(self, root: Path, files: Sequence[str], *, jobs: int = 2) -> None:
        self._root = root
        self._files = files
        self._jobs = jobs
        self._copies: queue.Queue[Path] = queue.Queue()

    def run(self, mutants: Sequence[Mutant], tell: Callable[[Outcome], None]) -> list[Outcome]:
        """Run all mutants and tell each outcome as it comes.

        Every killer runs without a fault first, with those of the same file: where it is not green, its mutants
        are errors and are not tried.

        Raises:
            Stale: a mutant does not fit the code. Nothing has run then.
        """
        for mutant in mutants:
            mutant.applied_to(self._root)
        with (
            tempfile.TemporaryDirectory(prefix="mutants-") as folder,
            ThreadPoolExecutor(max_workers=self._jobs) as pool,
        ):
            for number in range(self._jobs):
                self._copies.put(self._copy(Path(folder) / f"{number}" / "project"))
            try:
                red = self._red_killers(pool, {mutant.killer for mutant in mutants})
                outcomes = []
                for outcome in pool.map(lambda mutant: self._outcome(mutant, red), mutants):
                    tell(outcome)
                    outcomes.append(outcome)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return outcomes

    def _red_killers(self, pool: ThreadPoolExecutor, killers: set[Killer]) -> dict[Killer, Run]:
        """Find the killers that are not green without a fault."""
        together: dict[str, list[Killer]] = {}
        for killer in sorted(killers):
            together.setdefault(killer[0].partition("::")[0], []).append(killer)
        suspects: list[Killer] = []
        batches = list(together.values())
        for batch, run in zip(batches, pool.map(self._without_fault, batches), strict=True):
            suspects += [] if run.is_green else batch
        alone = zip(suspects, pool.map(lambda killer: self._without_fault([killer]), suspects), strict=True)
        return {killer: run for killer, run in alone if not run.is_green}

    def _without_fault(self, killers: Sequence[Killer]) -> Run:
        tests = list(dict.fromkeys(test for killer in killers for test in killer))
        with self._borrowed() as copy:
            return run_tests(copy, tests, copy.with_name("report.xml"), limit=HARD_LIMIT_SECONDS * len(killers))

    def _outcome(self, mutant: Mutant, red: dict[Killer, Run]) -> Outcome:
        if run := red.get(mutant.killer):
            return Outcome(mutant, Verdict.ERROR, 0.0, "its killer is not green without the fault", run.output)
        with self._borrowed() as copy:
            path = copy / mutant.file
            original = path.read_bytes()
            path.write_text(mutant.applied_to(copy), encoding="utf-8")
            try:
                seconds = HANG_SECONDS if mutant.hangs else TEST_SECONDS
                limit = 3 * HANG_SECONDS if mutant.hangs else HARD_LIMIT_SECONDS
                run = run_tests(copy, mutant.killer, copy.with_name("report.xml"), seconds=seconds, limit=limit)
            finally:
                path.write_bytes(original)
        verdict, note = judge(run, hangs=mutant.hangs)
        return Outcome(mutant, verdict, run.seconds, note, run.output)

    @contextmanager
    def _borrowed(self) -> Iterator[Path]:
        copy = self._copies.get()
        try:
            yield copy
        finally:
            self._copies.put(copy)

    def _copy(self, target: Path) -> Path:
        for name in self._files:
            if (source := self._root / name).is_file():  # a tracked file may be deleted, and not yet committed
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)
        return target


def tracked_files(root: Path) -> list[str]:
    """List what git knows of the project: what is not tracked is not part of it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]
