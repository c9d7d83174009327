"""A bulk load that ends before its file does: what is under way is waited for, and what was done is written down."""

import asyncio
import csv
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from client.checkouts import Checkouts
from domain.bulk import DELEGATED, Outcome
from domain.model import CheckoutInput, OrderLine
from sagafence import InvalidInput
from terminal.load import bulk
from terminal.load.bulk import BulkLoad, BulkReport, Stop
from terminal.load.orders_file import Entry
from terminal.load.outcomes import OutcomeFile

Carry = Callable[[str], Awaitable[str]]


class Till(Checkouts):
    """Checkouts whose batches end as a test says; there is no server."""

    def __init__(self, ends: Carry) -> None:
        self._ends = ends

    async def process(self, orders: Sequence[CheckoutInput]) -> Sequence[Outcome]:
        return [Outcome(order.order_id, await self._ends(order.order_id)) for order in orders]


def entries(count: int) -> Iterator[Entry]:
    for number in range(count):
        name = f"n-{number}"
        yield Entry(number + 2, name, CheckoutInput(name, "alice", (OrderLine("tea-mug", 1),)))


async def load(
    path: Path,
    ends: Carry,
    given: Iterable[Entry],
    begin: Callable[[BulkLoad], None] = lambda _: None,
) -> tuple[BulkReport, dict[str, str]]:
    with OutcomeFile(path) as outcomes:
        loading = BulkLoad(Till(ends), outcomes, batch_size=1, at_once=4, on_done=lambda _: None)
        begin(loading)
        async with asyncio.timeout(20):
            report = await loading.run(given)
    with path.open(encoding="utf-8", newline="") as file:
        return report, {row["order_id"]: row["status"] for row in csv.DictReader(file)}


async def test_when_a_batch_fails_the_others_are_waited_for_and_written_down(tmp_path: Path) -> None:
    others = asyncio.Event()
    failed = asyncio.Event()

    async def ends(name: str) -> str:
        if name == "n-1":
            failed.set()
            raise OSError("the line is down")
        await others.wait()
        return "completed"

    async def let_go() -> None:
        await failed.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        others.set()

    letting = asyncio.create_task(let_go())
    report, output = await load(tmp_path / "o.csv", ends, entries(100))
    await letting

    assert output == {"n-0": "completed", "n-2": "completed", "n-3": "completed"}
    assert isinstance(report.failure, OSError)
    assert (report.stopped, report.under_way, report.outcomes) == (Stop.FAILED, 1, {"completed": 3})
    assert report.line < 10


async def test_when_the_file_cannot_be_read_on_what_is_under_way_is_waited_for(tmp_path: Path) -> None:
    async def ends(_: str) -> str:
        await asyncio.sleep(0.01)
        return "completed"

    def given() -> Iterator[Entry]:
        yield from entries(3)
        raise InvalidInput("it was changed")

    report, output = await load(tmp_path / "o.csv", ends, given())

    assert set(output) >= {"n-0", "n-1"}
    assert set(output.values()) == {"completed"}
    assert isinstance(report.failure, InvalidInput)
    assert report.under_way == 0


async def test_who_interrupts_a_load_gets_what_is_under_way_written_down(tmp_path: Path) -> None:
    release, begun = asyncio.Event(), 0
    loading: BulkLoad

    async def ends(_: str) -> str:
        nonlocal begun
        begun += 1
        if begun == 4:
            loading.stop(Stop.INTERRUPTED)
            asyncio.get_running_loop().call_later(0.05, release.set)
        await release.wait()
        return "completed"

    def begin(given: BulkLoad) -> None:
        nonlocal loading
        loading = given

    report, output = await load(tmp_path / "o.csv", ends, entries(100), begin)

    assert output == {f"n-{number}": "completed" for number in range(4)}
    assert (report.stopped, report.under_way, begun) == (Stop.INTERRUPTED, 0, 4)


@pytest.mark.parametrize(
    "stops", [[Stop.INTERRUPTED] * 2, [Stop.LATE], [Stop.INTERRUPTED], [Stop.FAILED, Stop.INTERRUPTED]]
)
async def test_a_load_leaves_what_does_not_end_and_writes_down_what_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[Stop]
) -> None:
    """Interrupted twice, out of time, or once a moment has passed; also behind a failure."""
    monkeypatch.setattr(bulk, "_GRACE_SECONDS", 0.1)
    loading: BulkLoad

    async def ends(name: str) -> str:
        if name == "n-2":
            for stop in stops:
                loading.stop(stop)
        if name in {"n-0", "n-1"}:
            return "completed"
        await asyncio.Event().wait()
        raise AssertionError

    def begin(given: BulkLoad) -> None:
        nonlocal loading
        loading = given

    report, output = await load(tmp_path / "o.csv", ends, entries(100), begin)

    assert output == {"n-0": "completed", "n-1": "completed"}
    assert report.stopped is stops[0]
    assert report.under_way >= 1


async def test_what_a_batch_has_ended_is_written_down_though_one_of_its_orders_cannot_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def follow(_: Checkouts, order: CheckoutInput) -> Outcome:
        if order.order_id == "n-0":
            raise OSError("the line is down")
        await asyncio.sleep(0.01)
        return Outcome(order.order_id, "cancelled")

    async def ends(name: str) -> str:
        return "completed" if name == "n-2" else DELEGATED

    monkeypatch.setattr(bulk, "delegated_outcome", follow)
    with OutcomeFile(tmp_path / "o.csv") as outcomes:
        loading = BulkLoad(Till(ends), outcomes, batch_size=3, at_once=1, on_done=lambda _: None)
        report = await loading.run(entries(3))

    assert report.outcomes == {"completed": 1, "cancelled": 1}
    assert (report.under_way, report.stopped) == (1, Stop.FAILED)


async def test_a_batch_is_never_larger_than_what_the_server_takes(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Scales(Till):
        async def process(self, orders: Sequence[CheckoutInput]) -> Sequence[Outcome]:
            sizes.append(len(orders))
            return await super().process(orders)

    async def ends(_: str) -> str:
        return "completed"

    def given() -> Iterator[Entry]:
        for number in range(200):
            lines = tuple(OrderLine(f"{line:03d}-{'x' * 60}", 1) for line in range(100))
            name = f"n-{number}"
            yield Entry(number, name, CheckoutInput(name, "alice", lines))

    with OutcomeFile(tmp_path / "o.csv") as outcomes:
        report = await BulkLoad(Scales(ends), outcomes, batch_size=250, at_once=1, on_done=lambda _: None).run(given())

    assert report.outcomes == {"completed": 200}
    assert max(sizes) * 100 * 70 < 400_000
