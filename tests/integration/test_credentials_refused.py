"""Credentials that Temporal refuses: at start, and for so long while a worker runs that the SDK gives up."""

import asyncio
from pathlib import Path

import pytest

from devstack.stack import DevStack
from tests.integration.commands import DEADLINE_SECONDS, Commands
from tests.workflow.auth_proxy import AuthProxy


async def test_a_worker_whose_api_key_is_refused_at_start_says_so(commands: Commands, stack: DevStack) -> None:
    async with AuthProxy(stack.temporal.address, api_key="test1") as proxy:
        started = commands.worker(TEMPORAL_ADDRESS=proxy.address, TEMPORAL_TLS="false", TEMPORAL_API_KEY="test2")
        status = await asyncio.to_thread(started.wait, DEADLINE_SECONDS)
        reported = started.tail(50)
        shown = await asyncio.to_thread(
            commands.starter, "list", TEMPORAL_ADDRESS=proxy.address, TEMPORAL_TLS="false", TEMPORAL_API_KEY="test2"
        )

    assert status == 1, reported
    assert f"Temporal at {proxy.address} refuses us" in reported
    assert "CHECKOUT_TEMPORAL_API_KEY_FILE" in reported
    assert "Traceback" not in reported
    assert "test2" not in reported
    assert shown.code == 1
    assert "refuses" in shown.err
    assert "CHECKOUT_TEMPORAL_API_KEY_FILE" in shown.err


async def test_a_worker_process_takes_a_new_key_and_goes_on(
    commands: Commands, stack: DevStack, tmp_path: Path
) -> None:
    key_file = tmp_path / "api-key"
    key_file.write_text("test1\n")
    async with AuthProxy(stack.temporal.address, api_key="test1") as proxy:
        own = {
            "TEMPORAL_ADDRESS": proxy.address,
            "TEMPORAL_TLS": "false",
            "CHECKOUT_TEMPORAL_API_KEY_FILE": str(key_file),
        }
        started = await asyncio.to_thread(lambda: commands.ready_worker(**own))
        buy = ("start", "--customer", "alice", "--line", "tea-mug:1")
        first = await asyncio.to_thread(lambda: commands.starter(*buy, **own))  # it polls by now
        await proxy.ask_for(api_key="test2")
        key_file.write_text("test2\n")
        bought = await asyncio.to_thread(lambda: commands.starter(*buy, **own))
        status = await asyncio.to_thread(started.stop)

    assert first.code == 0, first.err
    assert bought.code == 0, bought.err
    assert status == 0
    assert "Temporal gets a new API key" in started.tail(100)


@pytest.mark.exhaustive
@pytest.mark.timeout(180)
async def test_a_worker_that_is_refused_for_longer_than_the_sdk_waits_says_so_and_ends(
    commands: Commands, stack: DevStack
) -> None:
    async with AuthProxy(stack.temporal.address, api_key="test1") as proxy:
        started = await asyncio.to_thread(
            commands.ready_worker, TEMPORAL_ADDRESS=proxy.address, TEMPORAL_TLS="false", TEMPORAL_API_KEY="test1"
        )
        await asyncio.sleep(10)
        await proxy.ask_for(api_key="test2")
        status = await asyncio.to_thread(started.wait, 120)
        reported = started.tail(100)

    assert status == 1, reported
    assert "Temporal refuses this process, which waits for better credentials" in reported
    assert "has ended this worker" in reported
    assert "CHECKOUT_TEMPORAL_API_KEY_FILE" in reported
