"""The link itself: a fault that it claims to have made was made, and it loses no byte of its own accord."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from sagafence.devservers.ports import free_port
from tests.faults.lab.proxy import Proxy, Way

HELD_SECONDS = 0.3
PATIENCE_SECONDS = 20.0


@pytest.fixture
async def heard() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a server that answers each line with itself, and give its port and what it heard."""
    lines: list[bytes] = []
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                lines.append(line)
                writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], lines
    server.close()
    await asyncio.wait_for(asyncio.gather(*filter(None, answering)), PATIENCE_SECONDS)


@pytest.fixture
def link(heard: tuple[int, list[bytes]]) -> Iterator[Proxy]:
    with Proxy(heard[0]) as running:
        yield running


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def on(cls, link: Proxy) -> "Caller":
        return cls(*await asyncio.open_connection("127.0.0.1", link.port))

    def say(self, line: bytes) -> None:
        self.writer.write(line)

    async def answer(self) -> bytes:
        return await asyncio.wait_for(self.reader.readline(), PATIENCE_SECONDS)

    async def hears_nothing(self) -> bool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.readline(), HELD_SECONDS)
        return True


async def until_held(link: Proxy) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (link.counts.bytes_held or link.counts.connections_held):
            await asyncio.sleep(0.01)


async def test_a_sound_link_carries_every_byte_both_ways(link: Proxy) -> None:
    caller = await Caller.on(link)

    caller.say(b"x" * 60_000 + b"\n")

    assert await caller.answer() == b"x" * 60_000 + b"\n"
    assert link.counts.bytes_delivered == 2 * 60_001
    caller.writer.close()


async def test_a_slow_link_delays_each_way_and_keeps_the_sequence(link: Proxy) -> None:
    caller = await Caller.on(link)
    link.slow(0.1, jitter=0.09)

    begun = time.monotonic()
    for number in range(5):
        caller.say(b"%d\n" % number)
        await asyncio.sleep(0.02)
    answers = [await caller.answer() for _ in range(5)]

    assert answers == [b"%d\n" % number for number in range(5)]
    assert time.monotonic() - begun >= 2 * 0.01
    assert link.counts.chunks_delayed >= 2
    caller.writer.close()


@pytest.mark.parametrize("way", Way, ids=lambda way: way.value.replace(" ", "-"))
async def test_a_black_hole_holds_bytes_until_it_closes(link: Proxy, heard: tuple[int, list[bytes]], way: Way) -> None:
    caller = await Caller.on(link)
    caller.say(b"before\n")
    before = await caller.answer()

    link.swallow(way)
    caller.say(b"inside\n")
    await until_held(link)
    arrived = list(heard[1])
    link.heal()
    after = await caller.answer()

    assert (before, after) == (b"before\n", b"inside\n")
    # One way the statement arrives and its answer does not; the other way nothing arrives.
    assert (b"inside\n" in arrived) is (way is Way.TO_CLIENT)
    assert link.counts.bytes_held == len(b"inside\n")
    caller.writer.close()


async def test_what_was_sent_into_a_black_hole_arrives_though_its_sender_has_left(
    link: Proxy, heard: tuple[int, list[bytes]]
) -> None:
    caller = await Caller.on(link)
    caller.say(b"before\n")
    await caller.answer()

    link.swallow()
    caller.say(b"late\n")
    await until_held(link)
    caller.writer.transport.abort()
    link.heal()

    async with asyncio.timeout(PATIENCE_SECONDS):
        while b"late\n" not in heard[1]:
            await asyncio.sleep(0.01)


async def test_a_server_never_hears_of_a_client_that_came_and_went_inside_a_black_hole(
    link: Proxy, heard: tuple[int, list[bytes]]
) -> None:
    link.swallow()
    caller = await Caller.on(link)
    caller.say(b"never\n")
    await until_held(link)
    caller.writer.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not link.has_departed:
            await asyncio.sleep(0.01)
    link.heal()

    long_query = await Caller.on(link)
    long_query.say(b"after\n")
    assert await long_query.answer() == b"after\n"
    assert heard[1] == [b"after\n"]
    assert link.counts.connections_held == 1
    long_query.writer.close()


async def test_refused_and_reset_connections_are_reported_at_once_and_counted(link: Proxy) -> None:
    old = await Caller.on(link)
    old.say(b"hello\n")
    await old.answer()

    link.refuse()
    with pytest.raises(ConnectionResetError):  # while it connects, or as soon as it has
        await (await Caller.on(link)).answer()
    old.say(b"still here\n")
    still = await old.answer()
    cut = link.reset()
    with pytest.raises(ConnectionResetError):
        await old.answer()
    link.heal()
    newer = await Caller.on(link)
    newer.say(b"welcome\n")

    assert still == b"still here\n"
    assert await newer.answer() == b"welcome\n"
    assert (cut, link.counts.refused, link.counts.reset, link.connections) == (1, 1, 1, 1)
    newer.writer.close()


async def test_a_link_to_nobody_resets_its_clients_and_lives_on() -> None:
    with Proxy(free_port()) as link:
        with pytest.raises(ConnectionResetError):
            await (await Caller.on(link)).answer()

        assert link.counts.accepted == 1
