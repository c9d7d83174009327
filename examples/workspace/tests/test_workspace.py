"""Opening a workspace keeps its promises, whatever goes wrong with a step, an undo, a worker or the provider."""

import asyncio
from datetime import UTC, datetime

import pytest
from httpx import AsyncClient
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from examples.workspace.tests.world import EVERYTHING, NOTHING, Handle, World
from examples.workspace.workflow import OpenWorkspace
from sagafence import Resolution, Verdict
from sagafence.testing import Case, SagaUnderTest, Step, Strike, Together, check

TENANT = Step(
    "tenant",
    do="create_tenant",
    undo="delete_tenant",
    effect={"tenants": 1},
    calls="POST /tenants",
    undo_calls="DELETE /tenants/",
)
STEPS = (
    Step("subdomain", do="reserve_subdomain", undo="release_subdomain", effect={"subdomains": 1}, is_transaction=True),
    Together(Step("seat", do="take_seat", undo="free_seat", effect={"seats": 1}, is_transaction=True), TENANT),
    Step("billing", do="bill", undo="bill.settle", effect={"invoices": 1}, is_irrevocable=True, calls="POST /invoices"),
    Step("welcome", do="send_welcome", effect={"mails": 1}, calls="POST /mails"),
)


@pytest.mark.saga_matrix(STEPS, can_be_retried=True)
async def test_whatever_goes_wrong_a_workspace_is_open_or_there_is_nothing_of_it(case: Case, world: World) -> None:
    saga = SagaUnderTest(
        start=world.start,
        worker=world.worker,
        probe=world.counts,
        retry=lambda handle: handle.execute_update(OpenWorkspace.retry),
        provider=world.proxy.strikes,
    )

    await check(case, saga)


@pytest.mark.parametrize(
    ("plan", "subdomain", "cause"),
    [
        ("team", "taken", "SubdomainTaken"),
        ("unheard-of", None, "NoSeatLeft"),
        ("team", "admin", "ProviderRefused"),
        ("pilot", None, "ProviderRefused"),
    ],
    ids=["ours refuses", "one side by side refuses", "theirs refuses", "the pivot refuses"],
)
async def test_a_refusal_names_its_cause_and_leaves_nothing(
    world: World, plan: str, subdomain: str | None, cause: str
) -> None:
    async with world.worker():
        first = await world.start(subdomain="taken")
        await first.result()
        before = await world.counts(first.id)
        refused = await world.start(plan, subdomain)
        with pytest.raises(WorkflowFailureError) as failure:
            await refused.result()

    assert cause in names_of(failure.value)
    assert await world.counts(refused.id) == {**NOTHING, "seats": before["seats"]}


async def test_while_nobody_knows_whether_it_was_billed_nothing_is_undone(world: World) -> None:
    unheard = world.proxy.strike(Strike.ACT_THEN_500, match="POST /invoices", times=None)
    async with world.worker():
        handle = await world.start()
        await unheard.has_hit.wait()
        cancelling = asyncio.create_task(handle.execute_update(OpenWorkspace.cancel, "changed their mind"))
        async with asyncio.timeout(20):
            while sum(call.path.endswith("/void") for call in world.proxy.calls) < 3:
                await asyncio.sleep(0.05)
        meanwhile = await world.counts(handle.id)
        unheard.stop()
        with pytest.raises(WorkflowUpdateFailedError):
            await cancelling
        await handle.result()

    assert meanwhile == {**EVERYTHING, "mails": 0}
    assert await world.counts(handle.id) == EVERYTHING


@pytest.mark.parametrize(("step", "path"), [("billing", "/invoices"), ("welcome", "/mails")])
async def test_where_only_a_person_can_say_they_look_and_say_it(world: World, step: str, path: str) -> None:
    async with world.worker():
        handle = await where_only_a_person_can_say(world, step, path)
        assert (await world.counts(handle.id))["tenants"] == 1
        why = "it is in their list, number 77"
        word = Resolution(step, Verdict.HAPPENED, who="ana", why=why, result=77, looked_at=just_now())
        await handle.execute_update(OpenWorkspace.resolve, word)
        opened = await handle.result()

    assert 77 in {opened.invoice_id, opened.mail_id}


def just_now() -> str:
    return datetime.now(UTC).isoformat()


async def test_a_person_who_says_that_it_was_never_billed_has_the_rest_undone(world: World) -> None:
    async with world.worker():
        handle = await where_only_a_person_can_say(world, "billing", "/invoices")
        why = "their list has none of this workspace"
        word = Resolution("billing", Verdict.NEVER, who="ana", why=why, looked_at=just_now())
        await handle.execute_update(OpenWorkspace.resolve, word)
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert await world.counts(handle.id) == NOTHING


async def test_a_provider_that_is_killed_again_and_again_opens_each_workspace_once(world: World) -> None:
    async with world.worker():
        handles = [await world.start() for _ in range(10)]
        for _ in range(3):
            world.provider.kill()
            world.provider.start()
        opened = [await handle.result() for handle in handles]

    books = world.provider.books()
    assert books["charges"] == {handle.id: 1 for handle in handles}
    assert {one["id"] for one in books["tenants"]} == {one.tenant_id for one in opened}
    assert len(books["mails"]) == 10


async def test_a_charge_that_arrives_after_its_void_is_refused(world: World) -> None:
    late = world.proxy.strike(Strike.SILENCE_THEN_ACT, match="POST /invoices")
    async with world.worker():
        handle = await world.start()
        await late.has_hit.wait()
        await handle.execute_update(OpenWorkspace.cancel, "changed their mind")
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        late.let_go()
        await late.has_ended.wait()

    assert await world.counts(handle.id) == NOTHING
    assert world.provider.books()["voids"] == [await world.key(handle.id, "billing")]


async def where_only_a_person_can_say(world: World, step: str, path: str) -> Handle:
    """Have somebody use the step's key for something else: what became of our own request cannot be told."""
    unheard = world.proxy.strike(Strike.FAIL, match=f"POST {path}", times=None)
    handle = await world.start()
    await unheard.has_hit.wait()
    other = {"reference": "other", "plan": "team", "template": "welcome"}
    async with AsyncClient(base_url=world.provider.url) as somebody:
        answer = await somebody.post(path, json=other, headers={"Idempotency-Key": await world.key(handle.id, step)})
    answer.raise_for_status()
    unheard.stop()
    await world.until(handle, "stuck")
    return handle


def names_of(error: BaseException | None) -> list[str]:
    """Return the types of the failures behind an error."""
    if error is None:
        return []
    return [getattr(error, "type", None) or type(error).__name__, *names_of(error.__cause__)]
