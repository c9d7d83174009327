"""The checker is checked: each mutant is a fault that the tests must notice.

    python -m tests.mutants                  all of them
    python -m tests.mutants --only NAME      one, with what pytest said
    python -m tests.mutants --list           their names, and why each matters

Exit status: 0 all were killed; 1 one survived; 2 one could not be tried, or wrong usage.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from devstack.stack import ROOT
from tests.mutants.campaign import Campaign, Outcome, tracked_files
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, Stale
from tests.mutants.run import Verdict

_NAME_WIDTH = max(len(mutant.name) for mutant in MUTANTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="run this mutant alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="show all mutants and run none")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many to run at once (2)")
    wanted = parser.parse_args(arguments)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in wanted.only or () if name not in known]:
        parser.error(f"there is no mutant {', '.join(unknown)}; --list shows them")
    chosen = [known[name] for name in wanted.only] if wanted.only else list(MUTANTS)
    if wanted.list:
        for mutant in chosen:
            _say(f"{mutant.name:{_NAME_WIDTH}}  {mutant.file}: {mutant.why}")
        return 0
    return _run(chosen, jobs=wanted.jobs, verbose=bool(wanted.only))


def _run(mutants: Sequence[Mutant], *, jobs: int, verbose: bool) -> int:
    def tell(outcome: Outcome) -> None:
        mutant = outcome.mutant
        note = f"  {outcome.note}" if outcome.note else ""
        killer = mutant.killer[0].rpartition("/")[2] + (" ..." if len(mutant.killer) > 1 else "")
        _say(f"{mutant.name:{_NAME_WIDTH}}  {outcome.verdict:8}  {outcome.seconds:5.1f} s  {killer}{note}")
        if verbose or outcome.verdict is not Verdict.KILLED:
            _say(outcome.output)

    began = time.monotonic()
    try:
        outcomes = Campaign(ROOT, tracked_files(ROOT), jobs=jobs).run(mutants, tell)
    except Stale as stale:
        _say(f"stale: {stale}")
        return 2
    verdicts = [outcome.verdict for outcome in outcomes]
    _say(f"{len(outcomes)} mutants in {time.monotonic() - began:.0f} s")
    for outcome in outcomes:
        if outcome.verdict is not Verdict.KILLED:
            _say(f"{outcome.verdict}: {outcome.mutant.name} ({outcome.mutant.why}) {outcome.note}".rstrip())
    _say(f"killed {verdicts.count(Verdict.KILLED)}/{len(verdicts)}")
    if Verdict.ERROR in verdicts:
        return 2
    return 1 if Verdict.SURVIVED in verdicts else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
