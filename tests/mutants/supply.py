"""Faults in how it is told and checked what comes from others."""

from tests.mutants.killers import SUPPLY, at
from tests.mutants.mutant import Mutant

_SBOM = "deploy/supply/sbom.py"

MUTANTS = (
    Mutant(
        "audit-passes-over-what-it-cannot-ask",
        "an audit without the internet would find nothing and call that good",
        "Makefile",
        "pip-audit --strict ",
        "pip-audit ",
        at(SUPPLY, "test_an_audit_that_could_not_ask_is_no_success"),
    ),
    Mutant(
        "audit-of-the-last-lock-file",
        "a vulnerable package of the product would be told and forgotten",
        "Makefile",
        "-r $$lock || failed=1; \\\n",
        "-r $$lock; failed=$$?; \\\n",
        at(SUPPLY, "test_an_audit_fails_where_one_of_its_lock_files_does"),
    ),
    Mutant(
        "sbom-without-a-look-at-the-lock-file",
        "a document would lack a package, and nobody would know",
        _SBOM,
        '    problems = [f"{name} {version} is missing" for name, version in sorted(wanted.keys() - made.keys())]\n',
        "    problems: list[str] = []\n",
        at(SUPPLY, "test_a_bill_that_lacks_something_is_reported"),
    ),
    Mutant(
        "sbom-without-hashes",
        "a document would name packages that could be any",
        _SBOM,
        "        if not wanted[name, version] or made[name, version] != wanted[name, version]\n",
        "        if not wanted[name, version]\n",
        at(SUPPLY, "test_a_bill_that_lacks_something_is_reported"),
    ),
    Mutant(
        "binaries-of-somebody-else",
        "another program than the recorded one would be run",
        "deploy/supply/binaries.sha256",
        "712217694cac9f786a72d4b6c876cd15f3dcf1bf31434d9fed6af25242a327a0",
        "812217694cac9f786a72d4b6c876cd15f3dcf1bf31434d9fed6af25242a327a0",
        at(SUPPLY, "test_the_programs_of_a_repackaged_wheel_are_the_recorded_ones"),
    ),
)
