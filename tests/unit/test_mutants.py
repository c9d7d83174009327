"""The runner of the mutants: only a test that failed because of the fault counts as a kill."""

import ast
from functools import cache
from pathlib import Path

import pytest

from devstack.stack import ROOT
from tests.mutants.__main__ import main
from tests.mutants.campaign import Campaign, Outcome
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, Stale
from tests.mutants.run import Run, Verdict, judge
from tests.shares import COLLECTED

# A project of one product file, and what its tests make of it. Each test is the killer of one mutant.
_PROJECT = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = ["--import-mode=importlib"]\n',
    "shop.py": "def price(quantity):\n    return 12 * quantity\n",
    "test_shop.py": """
import pytest
import shop

@pytest.fixture
def opened():
    assert shop.price(1) == 12

def test_watchful():
    assert shop.price(2) == 24

def test_blind():
    assert shop.price(0) == 0

def test_opened(opened):
    pass

def test_red():
    assert shop.price(1) == 13

def test_skipped():
    pytest.skip("not today")

def test_patient():
    while shop.price(1) != 12:
        pass
""",
}
_DEAR = "    return 13 * quantity\n"


def _mutant(killer: str, after: str = _DEAR, *, before: str = "    return 12 * quantity\n") -> Mutant:
    return Mutant(killer, "a test of the runner", "shop.py", before, after, (f"test_shop.py::{killer}",))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in _PROJECT.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def _run(project: Path, *mutants: Mutant) -> list[Outcome]:
    told: list[Outcome] = []
    outcomes = Campaign(project, list(_PROJECT)).run(mutants, told.append)
    assert told == outcomes
    assert {name: (project / name).read_text(encoding="utf-8") for name in _PROJECT} == _PROJECT
    return outcomes


# The catalogue ------------------------------------------------------------------------------------------


def test_every_mutant_fits_the_code_and_names_tests_that_exist() -> None:
    source = cache(lambda path: (ROOT / path).read_text(encoding="utf-8"))
    problems: dict[str, object] = {}
    for mutant in MUTANTS:
        try:
            text = mutant.applied_to(ROOT)
            if mutant.file.endswith(".py"):
                ast.parse(text)
        except (Stale, SyntaxError) as problem:
            problems[mutant.name] = problem
        killers = [killer.partition("::") for killer in mutant.killer]
        gone = [test for path, _, test in killers if f"def {test.partition('[')[0]}(" not in source(path)]
        if gone or not killers or mutant.file.startswith("tests/"):
            problems[mutant.name] = gone or "it has no killer, or is a fault of a test"

    assert problems == {}


def test_every_case_that_a_mutant_names_is_among_those_of_its_test(pytestconfig: pytest.Config) -> None:
    """Sees the files that pytest has collected for this run: all of them in `make test`, this one alone otherwise."""
    collected = pytestconfig.stash[COLLECTED]
    known = collected | {test.partition("[")[0] for test in collected}
    files = {test.partition("::")[0] for test in collected}
    named = {killer for mutant in MUTANTS for killer in mutant.killer if killer.partition("::")[0] in files}

    assert named - known == set()


def test_mutants_have_names_of_their_own_and_are_faults_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.before, mutant.after) for mutant in MUTANTS}) == len(MUTANTS)
    assert len(MUTANTS) >= 40


# The runner ---------------------------------------------------------------------------------------------


def test_a_mutant_is_killed_by_a_failing_test_and_survives_a_blind_one(project: Path) -> None:
    killed, survived = _run(project, _mutant("test_watchful"), _mutant("test_blind"))

    assert (killed.verdict, survived.verdict) == (Verdict.KILLED, Verdict.SURVIVED)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("killer", "after", "note"),
    [
        ("test_opened", _DEAR, "no test failed, a fixture did"),
        ("test_watchful", "    return 13 quantity\n", "pytest ended with"),
        ("test_watchful", "    return dear * quantity\n", "broken, not wrong: E       NameError"),
        ("test_red", _DEAR, "not green without the fault"),
        ("test_skipped", _DEAR, "not green without the fault"),
        ("test_that_is_gone", _DEAR, "not green without the fault"),
    ],
)
def test_a_failure_that_is_not_the_faults_is_an_error(project: Path, killer: str, after: str, note: str) -> None:
    [outcome] = _run(project, _mutant(killer, after))

    assert outcome.verdict is Verdict.ERROR
    assert note in outcome.note


@pytest.mark.exhaustive
def test_a_red_killer_does_not_hurt_the_others_of_its_file(project: Path) -> None:
    red, killed = _run(project, _mutant("test_red"), _mutant("test_watchful"))

    assert (red.verdict, killed.verdict) == (Verdict.ERROR, Verdict.KILLED)


def test_a_hang_is_an_error_unless_the_mutant_says_that_it_hangs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("TEST_SECONDS", "HANG_SECONDS"):
        monkeypatch.setattr(f"tests.mutants.campaign.{limit}", 1)
    mutant = _mutant("test_patient")
    expected = Mutant("expected", mutant.why, mutant.file, mutant.before, mutant.after, mutant.killer, hangs=True)

    surprise, hung = _run(project, mutant, expected)

    assert (surprise.verdict, hung.verdict) == (Verdict.ERROR, Verdict.KILLED)
    assert "it hung" in surprise.note


@pytest.mark.parametrize("before", ["    return 14 * quantity\n", "quantity"])
def test_a_stale_mutant_stops_everything_before_it_begins(project: Path, before: str) -> None:
    told: list[Outcome] = []

    with pytest.raises(Stale, match=r"its text stands [02] times in shop\.py, not once"):
        Campaign(project, list(_PROJECT)).run([_mutant("test_watchful"), _mutant("x", before=before)], told.append)

    assert told == []


@pytest.mark.parametrize(
    "said",
    [
        "E   ImportError: cannot import name 'gate'",
        "NameError: name 'gate' is not defined",
        "WARNING  checkout.database:database.py:120 DatabaseRefusedStatement: Postgres refused: syntax error (42601)",
        "E   asyncpg.exceptions.UndefinedColumnError: column does not exist",
    ],
)
def test_a_test_that_failed_of_a_broken_mutant_is_no_kill(said: str) -> None:
    verdict, note = judge(Run(1, 0, ["AssertionError"], [], 0, f"....\n{said}\n", 1.0))

    assert verdict is Verdict.ERROR
    assert "broken" in note


def test_a_plan_that_went_stale_is_no_broken_statement() -> None:
    said = "Postgres refused: type of parameter 14 (text) does not match that when preparing the plan (xml) (42804)"

    verdict, _ = judge(Run(1, 0, ["AssertionError"], [], 0, f"E   {said}\n", 1.0))

    assert verdict is Verdict.KILLED


def test_a_run_that_had_to_be_killed_has_hung() -> None:
    run = Run(None, 0, [], [], 0, "", 180.0)

    assert judge(run)[0] is Verdict.ERROR
    assert judge(run, hangs=True)[0] is Verdict.KILLED


# The command --------------------------------------------------------------------------------------------


def test_the_list_names_every_mutant_and_why_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0

    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [mutant.name for mutant in MUTANTS]
    assert all(line.endswith(mutant.why) for line, mutant in zip(listed, MUTANTS, strict=True))


def test_a_mutant_that_does_not_exist_is_reported_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "no-such-mutant"])

    assert ended.value.code == 2
    assert "no-such-mutant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdicts", "last_line", "code"),
    [
        ([Verdict.KILLED, Verdict.KILLED], "killed 2/2", 0),
        ([Verdict.KILLED, Verdict.SURVIVED], "killed 1/2", 1),
        ([Verdict.SURVIVED, Verdict.ERROR], "killed 0/2", 2),
    ],
)
def test_the_command_ends_well_only_when_all_were_killed(
    verdicts: list[Verdict],
    last_line: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = MUTANTS[: len(verdicts)]
    outcomes = [Outcome(mutant, verdict, 1.0) for mutant, verdict in zip(chosen, verdicts, strict=True)]
    monkeypatch.setattr(Campaign, "run", lambda *_: outcomes)

    status = main([part for mutant in chosen for part in ("--only", mutant.name)])

    assert status == code
    assert capsys.readouterr().out.splitlines()[-1] == last_line
