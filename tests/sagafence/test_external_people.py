"""What a person says of an external step whose outcome is unknown: each word is logged, and leads on."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import pytest

from sagafence import InvalidInput, StepAlreadyCompensated, UndoOutcome, UndoResult, resolve_late
from sagafence.errors import CallRejected, OutcomeUnknown, VerdictRefused
from sagafence.external_steps.backward import CLAIMS_BEFORE_ASKING
from sagafence.provider import Happened, Never, Provider, Settles, Verdict
from tests.sagafence.bench import HOUR, MINUTE, Bench, NoAnswer
from tests.sagafence.conftest import MakeBench
from tests.sagafence.http_provider import Fault

BY_A_PERSON = Provider("p", Settles.BY_A_PERSON, late_by_at_most=HOUR)
REPEATING = Provider("p", Settles.BY_REPEATING)


async def parked(step: Bench, *, pivot: bool = False, acts: bool = True) -> None:
    """Leave the step with a question."""
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP if acts else Fault.LATE)
    with pytest.raises((ConnectionError, NoAnswer)):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await (step.settle() if pivot else step.undo())


async def test_never_does_not_count_while_a_call_may_be_under_way(bench: MakeBench) -> None:
    """Counterexample 17."""
    step = bench(BY_A_PERSON)
    await parked(step, acts=False)

    for looked_at in (None, datetime.now(UTC) + 2 * HOUR):  # by a clock that is fast
        with pytest.raises(VerdictRefused, match="under way"):
            await step.resolve(Verdict.NEVER, looked_at=looked_at)
    assert await step.database.fetch("SELECT FROM saga_verdicts") == []
    await step.grow_older(2 * HOUR)
    await step.resolve(Verdict.NEVER)

    assert (await step.phase(), await step.undo()) == ("undone", UndoResult(UndoOutcome.ALREADY_UNDONE))


async def test_happened_is_reversed(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.undo(), step.http.live) == (UndoResult(UndoOutcome.REVERSED, {"result": 1}), 0)


async def test_undone_by_hand_ends_it(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    await step.resolve(Verdict.UNDONE_BY_HAND, who="ann", why="cancelled in their console")

    assert (await step.undo()).outcome is UndoOutcome.ALREADY_UNDONE
    with pytest.raises(StepAlreadyCompensated):
        await step.do()
    [logged] = await step.database.fetch("SELECT verdict, who, why FROM saga_verdicts")
    assert tuple(logged) == ("undone_by_hand", "ann", "cancelled in their console")


async def test_a_pivot_that_happened_goes_forward(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step, pivot=True)

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.settle(), await step.do(), step.http.live) == (Happened(1), 1, 1)


async def test_a_pivot_that_never_happened_unwinds(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step, pivot=True, acts=False)
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.NEVER)

    assert await step.settle() == Never()


async def test_a_forward_step_that_never_happened_is_sent_under_the_next_key(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.do()
    with pytest.raises(VerdictRefused):
        await step.resolve(Verdict.NEVER)
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.NEVER)

    assert await step.do() == 1
    assert len(set(step.http.sent("POST"))) == 2
    assert await step.row("key") == step.http.sent("POST")[1]


async def test_a_forward_step_that_happened_is_done_with_what_the_person_says(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.do()

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.do(), len(step.http.sent("POST"))) == (1, 1)


async def test_behind_a_stored_error_every_word_counts_at_once(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.faults.append(Fault.FAILS_500)
    with pytest.raises(NoAnswer):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    await step.resolve(Verdict.NEVER)

    assert (await step.undo()).outcome is UndoOutcome.ALREADY_UNDONE


async def test_undone_by_hand_does_not_count_while_a_reversal_may_be_under_way(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await step.do()
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.undo()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    with pytest.raises(VerdictRefused, match="reversal"):
        await step.resolve(Verdict.UNDONE_BY_HAND)

    await step.grow_older(2 * HOUR)
    await step.resolve(Verdict.UNDONE_BY_HAND)


async def test_a_reversal_that_never_arrived_is_sent_again_when_a_person_says_that_it_still_stands(
    bench: MakeBench,
) -> None:
    step = bench(BY_A_PERSON)
    await step.do()
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.undo()
    with pytest.raises(OutcomeUnknown):
        await step.undo()
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.HAPPENED)

    assert ((await step.undo()).outcome, step.http.reversals) == (UndoOutcome.REVERSED, 1)


async def test_a_success_that_came_after_all_is_closed_by_a_person(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    await came_late(step)

    with pytest.raises(VerdictRefused, match="by hand"):
        await step.resolve(Verdict.HAPPENED, 1)
    await step.resolve(Verdict.UNDONE_BY_HAND)

    assert (await step.phase(), await step.row("question")) == ("undone", None)


async def test_a_word_from_before_a_repeat_has_told_does_not_count(bench: MakeBench) -> None:
    """Ann looks and finds nothing; then a repeat has the effect; then she says so."""
    step = bench(REPEATING)
    step.http.faults += [Fault.LATE, *[Fault.REJECTS_429] * 5]
    with pytest.raises(ConnectionError):
        await step.do()
    for _ in range(5):
        with pytest.raises((CallRejected, OutcomeUnknown)):
            await step.undo()
    assert (await step.row("question"), step.http.live) == ("is_it_there", 0)
    step.http.faults += [Fault.NONE, Fault.REJECTS_429]
    with pytest.raises(NoAnswer):
        await step.undo()

    with pytest.raises(VerdictRefused, match="no person is asked"):
        await step.resolve(Verdict.NEVER)

    assert ((await step.undo()).outcome, step.http.live) == (UndoOutcome.REVERSED, 0)


async def came_late(step: Bench) -> None:
    """Have a success heard after its step was settled as never."""
    step.http.faults.append(Fault.WAITS)
    async with step.held_do() as doing:
        await step.grow_older(2 * HOUR)
        await step.undo()
    with pytest.raises(StepAlreadyCompensated):
        await doing
    assert await step.row("question") == "came_late"


@pytest.mark.parametrize("pivot", [False, True])
async def test_a_look_from_before_a_repeat_has_acted_does_not_count(bench: MakeBench, pivot: bool) -> None:
    step = bench(Provider("p", Settles.BY_REPEATING, late_by_at_most=HOUR))
    undo = step.settle if pivot else step.undo
    step.http.faults += [Fault.LATE, *[Fault.GATEWAY_503] * CLAIMS_BEFORE_ASKING, Fault.ACTS_AND_HANGS_UP]
    with pytest.raises(ConnectionError):
        await step.do()
    for _ in range(CLAIMS_BEFORE_ASKING):
        with pytest.raises((NoAnswer, OutcomeUnknown)):
            await undo()
    found, looked_at = step.http.live, datetime.now(UTC)
    with pytest.raises(OutcomeUnknown):
        await undo()
    await step.grow_older(2 * HOUR)

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.NEVER, looked_at=looked_at - 2 * HOUR)

    await undo()
    assert (found, step.http.live) == (0, 1 if pivot else 0)


async def test_a_look_from_before_an_error_was_found_to_be_stored_does_not_count(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.faults.append(Fault.ACTS_AND_500)
    looked_at = datetime.now(UTC)
    with pytest.raises(NoAnswer):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.NEVER, looked_at=looked_at)
    await step.resolve(Verdict.HAPPENED, 1)

    assert ((await step.undo()).outcome, step.http.live) == (UndoOutcome.REVERSED, 0)


@pytest.mark.parametrize("pivot", [False, True])
async def test_a_look_from_before_the_key_was_found_to_be_anothers_does_not_count(
    bench: MakeBench, pivot: bool
) -> None:
    step = bench(Provider("p", Settles.BY_REPEATING))
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.do()
    looked_at = datetime.now(UTC)
    step.http.arrive()
    await step.database.run("""UPDATE external_steps SET request = '{"size": 4}'""")  # another build sends more fields
    with pytest.raises(OutcomeUnknown, match="other content under its key"):
        await (step.settle() if pivot else step.undo())

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.NEVER, looked_at=looked_at)
    await step.resolve(Verdict.HAPPENED, 1, looked_at=datetime.now(UTC))

    await (step.settle() if pivot else step.undo())
    assert step.http.live == (1 if pivot else 0)


@pytest.mark.parametrize("lag", [timedelta(0), HOUR])
async def test_a_look_from_before_a_late_reversal_reverses_nothing_twice(bench: MakeBench, lag: timedelta) -> None:
    step = bench(Provider("p", Settles.BY_A_PERSON, late_by_at_most=HOUR, sight_lags_by=lag))
    await step.do()
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.undo()
    await step.database.run("UPDATE external_steps SET last_at = last_at - interval '2 days'")
    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()
    step.http.arrive()
    until = datetime.fromisoformat(asked.value.details[0]["late_until"])
    await step.grow_older(HOUR)

    assert until > datetime.now(UTC) + HOUR / 2 + lag
    with pytest.raises(VerdictRefused, match="a reversal may have acted"):
        await step.resolve(Verdict.HAPPENED, looked_at=until - HOUR - timedelta(seconds=1))
    await step.grow_older(lag + MINUTE)
    await step.resolve(Verdict.UNDONE_BY_HAND, looked_at=until - HOUR + timedelta(minutes=2))
    assert ((await step.undo()).outcome, step.http.reversals) == (UndoOutcome.ALREADY_UNDONE, 1)


async def test_a_stored_error_is_asked_about_until_a_look_shows_what_it_hides(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_REPEATING, sight_lags_by=HOUR))
    step.http.faults.append(Fault.ACTS_AND_500)
    with pytest.raises(NoAnswer):
        await step.do()
    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()

    assert datetime.fromisoformat(asked.value.details[0]["late_until"]) > datetime.now(UTC) + HOUR / 2
    with pytest.raises(VerdictRefused, match=r"look again after 20..-..-..T..:..:..\+00:00"):
        await step.resolve(Verdict.NEVER)


async def test_by_hand_from_before_the_last_repeat_does_not_count(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.UNDONE_BY_HAND, looked_at=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidInput, match="time zone"):
        await step.resolve(Verdict.UNDONE_BY_HAND, looked_at=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_a_look_from_before_a_late_success_does_not_close_it(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    looked_at = datetime.now(UTC)
    await came_late(step)

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.NEVER, looked_at=looked_at)

    assert await step.row("question") == "came_late"


async def test_a_look_from_before_the_last_answer_does_not_count(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)
    await step.database.run("UPDATE external_calls SET live = false, answered_at = clock_timestamp()")
    ago = datetime.now(UTC) - timedelta(minutes=1)

    with pytest.raises(VerdictRefused, match="look again"):
        await step.resolve(Verdict.NEVER, looked_at=ago)
    await step.resolve(Verdict.NEVER, looked_at=datetime.now(UTC) + HOUR)


async def test_never_is_no_word_on_what_is_known_to_have_happened(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)
    await step.database.run("UPDATE external_steps SET result = '1', question = 'was_it_reversed'")
    await step.grow_older(2 * HOUR)

    with pytest.raises(VerdictRefused, match="known to have happened"):
        await step.resolve(Verdict.NEVER)


@pytest.mark.parametrize(("verdict", "question"), [(Verdict.NEVER, "came_late"), (Verdict.UNDONE_BY_HAND, None)])
async def test_a_success_that_is_heard_after_a_word_is_asked_about_where_it_contradicts_it(
    verdict: Verdict, question: str | None, bench: MakeBench
) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.WAITS)
    async with step.held_do() as doing:
        with pytest.raises(OutcomeUnknown):
            await step.undo()
        await step.grow_older(2 * HOUR)
        await step.resolve(verdict)
    with pytest.raises(StepAlreadyCompensated):
        await doing

    assert await step.row("question") == question


async def test_a_success_that_came_after_the_saga_has_ended_is_closed_by_a_person_too(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    await came_late(step)
    [logged] = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]

    for _ in range(2):  # its answer was lost
        await resolve_late(step.engine, "saga-1", "buy", Verdict.UNDONE_BY_HAND, who="ann", why="cancelled it")

    assert "`python -m sagafence resolve-late`" in logged
    assert (await step.phase(), await step.row("question")) == ("undone", None)
    [row] = await step.database.fetch("SELECT saga_id, step, verdict, who, why FROM saga_verdicts")
    assert tuple(row) == ("saga-1", "buy", "undone_by_hand", "ann", "cancelled it")


async def test_a_word_on_what_did_not_come_late_is_refused_with_what_to_do(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    said: dict[str, str] = {"who": "ann", "why": "I looked"}
    late = partial(resolve_late, step.engine, "saga-1", "buy")
    with pytest.raises(VerdictRefused, match="no external step of that name"):
        await late(Verdict.NEVER, **said)
    await parked(step)
    with pytest.raises(VerdictRefused, match=r"is is_it_there, .* the update resolve"):
        await late(Verdict.NEVER, **said)
    await step.grow_older(2 * HOUR)
    await step.resolve(Verdict.UNDONE_BY_HAND)  # in the same words
    with pytest.raises(VerdictRefused, match="no success came late"):
        await late(Verdict.UNDONE_BY_HAND, **said)
    with pytest.raises(VerdictRefused, match="reverse by hand what came late"):
        await late(Verdict.HAPPENED, **said)
    with pytest.raises(InvalidInput):
        await late(Verdict.NEVER, who="ann", why=" ")

    assert await step.database.value("SELECT count(*) FROM saga_verdicts") == 1


async def command(*arguments: str, **more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sagafence", "resolve-late", *arguments, "--who=Zoë", "--why=gone"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", **more},
        # Whoever runs the tests in the background has it ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_the_command_that_waits_for_the_row_can_be_interrupted(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    await came_late(step)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%came_late%'"
    async with step.database.connected() as holder, holder.transaction():
        await holder.execute("SELECT FROM external_steps FOR UPDATE")
        process = await command("saga-1", "buy", "undone_by_hand", f"--database={step.database.admin_url}")
        async with asyncio.timeout(20):
            while not await step.database.value(waits):
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = await ended(process)

    assert said == (130, "interrupted: it may be recorded; say it again, which is safe\n")
    assert await step.row("question") == "came_late"


async def test_the_command_records_the_word_and_says_why_where_it_does_not(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    await came_late(step)

    async def run(url: str, *arguments: str, **more: str) -> tuple[int, str]:
        return await ended(await command(*arguments, *([f"--database={url}"] if url else []), **more))

    said = "buy of saga-1: undone_by_hand, says Zo\\xeb."
    url, of_this = step.database.admin_url, ("saga-1", "buy", "undone_by_hand")
    recorded = await run(f"{url}?application_name=ann".replace(":", "+asyncpg:", 1), *of_this)
    others = [
        await run(url, "saga-2", "buy", "never"),
        await run("postgresql://127.0.0.1:1/nothing", *of_this),
        await run("mysql://here", *of_this),
        await run("postgresql://ann:a/secret@localhost/x", *of_this),
        await run(url, "saga-1", "buy", "happened"),
    ]
    where = urlsplit(url)
    like_psql = {"PGHOST": str(where.hostname), "PGPORT": str(where.port), "PGUSER": str(where.username)}
    like_psql |= {"PGPASSWORD": where.password or "", "PGDATABASE": where.path[1:]}
    again = await run("", *of_this, **like_psql)

    assert recorded == again == (0, f"{said} Where the saga is stuck at it, send it the update retry.\n")
    assert [status for status, _ in others] == [1, 1, 1, 1, 2]
    assert all(output.startswith("not recorded: ") for _, output in others[:4])
    assert "secret" not in str(others)
    assert "Traceback" not in str(others)
    assert await step.row("question") is None


@pytest.mark.parametrize("verdict", Verdict)
async def test_nobody_is_asked_about_a_step_that_is_done(bench: MakeBench, verdict: Verdict) -> None:
    step = bench(BY_A_PERSON)
    with pytest.raises(VerdictRefused, match="never called"):
        await step.resolve(verdict, 1)
    await step.do()

    with pytest.raises(VerdictRefused, match="no person is asked"):
        await step.resolve(verdict, 1)

    assert await step.phase() == "done"


async def test_a_verdict_that_is_repeated_because_its_answer_was_lost_is_logged_once(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    for _ in range(2):
        await step.resolve(Verdict.HAPPENED, 1)

    assert await step.database.value("SELECT count(*) FROM saga_verdicts") == 1


async def test_a_verdict_says_who_and_why(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    for who, why in (("", "I looked"), ("ann", " ")):
        with pytest.raises(InvalidInput):
            await step.resolve(Verdict.HAPPENED, 1, who=who, why=why)
