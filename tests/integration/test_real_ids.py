"""Orders under the ids of other systems, from the command line through the real servers to saga.log and back."""

import asyncio
import json
import shlex
from urllib.parse import quote, unquote

from activities.sweep import Sweep
from client.checkouts import Checkouts
from domain.bulk import payload_bytes
from domain.identifiers import in_line
from domain.model import MAX_LINES, CheckoutInput, OrderLine
from domain.sweep import UnfinishedInput
from tests.conftest import Database, Shop
from tests.integration.commands import Commands, unique, until

_CART = "\U0001f6d2"
_NASTY = [
    "#1001",
    "gid://shop/Order/450",
    "a'b\"c\\d\\",
    "'; DROP TABLE orders; --",
    "100%25 %2F %s {0} :order_id",
    "*?x=1&y=[red]**b**[/red]`id`$(id)",
    "--help",
    "bulk-1 #2 paid -> completed by ship workflow=checkout-1",
    "طلب-٣",
]


async def _sold(database: Database, *ids: str) -> None:
    """Have the catalogue sell products under these SKUs, to customers of these ids."""
    await database.fetch("INSERT INTO products SELECT id, 'A product', 100 FROM unnest($1::text[]) AS id", ids)
    await database.fetch(
        "INSERT INTO inventory (sku, initial, on_hand) SELECT id, 10, 10 FROM unnest($1::text[]) AS id", ids
    )
    await database.fetch(
        "WITH opened AS (INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone)"
        " SELECT id, 'customer', 'Somebody', 100000, 'country' FROM unnest($1::text[]) AS id RETURNING account_id)"
        " INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)"
        " SELECT 'deposit/' || account_id, 'deposit', 'bank', account_id, 100000, 'EUR' FROM opened",
        ids,
    )
    await database.run("SELECT approve_what_is_there('the test''s own')")


def _longest(name: str, customer: str) -> CheckoutInput:
    """An order as large as orders get."""
    skus = [_CART * 127 + chr(0x4E00 + number) for number in range(MAX_LINES)]
    return CheckoutInput(name, customer, tuple(OrderLine(sku, 1) for sku in skus))


def test_an_order_under_any_legal_id_is_started_shown_listed_and_logged(commands: Commands, database: Database) -> None:
    wide = unique("w") + _CART * 118
    asyncio.run(_sold(database, *_NASTY, wide))
    commands.ready_worker()
    ids = [name if name.startswith("--") else f"{name} {unique('')}" for name in _NASTY] + [wide]

    for name, customer in zip(ids, [*_NASTY, wide], strict=True):
        started = commands.here("start", "--order-id", name, "--customer", customer, f"--line={customer}:2", "--json")
        shown = commands.here("status", "--json", "--", name)
        cancelled = commands.here("cancel", "--reason", "too late", "--json", "--", name)

        assert (started.code, shown.code, cancelled.code) == (0, 0, 3), started.err + shown.err + cancelled.err
        assert started.document == shown.document
        assert (started.document["order_id"], started.document["status"]) == (name, "completed")
        link = started.document["ui_url"].rpartition("/workflows/")[2]
        assert link == quote(f"checkout-{name}", safe="")
        assert unquote(link) == f"checkout-{name}"
        assert cancelled.err == f"refused: order {name} is completed already\n"

    until(lambda: {each["order_id"] for each in commands.here("list", "--json").document} >= set(ids))
    assert commands.here("audit", "--at-rest").code == 0
    log = commands.folder / "saga.log"
    until(lambda: len(log.read_text("utf-8").splitlines()) >= 3 * len(ids))
    lines = log.read_text("utf-8").splitlines()
    for name in ids:
        own = [line.split(" ", 1)[1] for line in lines if line.split(" ", 1)[1].startswith(f"{in_line(name)} #")]
        assert [line.removeprefix(f"{in_line(name)} ").split(" ")[0] for line in own] == [f"#{n}" for n in range(1, 4)]
        assert all(f" workflow={in_line(f'checkout-{name}')} pos=" in line for line in own)


def test_what_a_keyboard_types_apart_is_one_order(commands: Commands, database: Database) -> None:
    asyncio.run(_sold(database, "café"))
    commands.ready_worker()
    order_id = unique("é")

    typed = commands.here(
        "start", "--order-id", order_id.replace("é", "e\u0301"), "--customer", "cafe\u0301", "--line", "cafe\u0301:1",
        "--json",
    )  # fmt: skip
    shown = commands.here("status", "--json", order_id.replace("é", "e\u0301"))

    assert (typed.code, shown.code) == (0, 0), typed.err + shown.err
    assert typed.document["order_id"] == shown.document["order_id"] == order_id


def test_what_it_says_can_be_typed_again(commands: Commands, database: Database) -> None:
    asyncio.run(_sold(database, "a'b c"))
    order_id = unique("$(id) 'a'")

    # Without a worker it takes long, and is told how to look for the order.
    given = ("--order-id", order_id, "--customer", "a'b c", "--line", "a'b c:1", "--timeout", "3")
    started = commands.here("start", *given)
    commands.ready_worker()
    hint = started.err.partition("starter.py ")[2].splitlines()[0]
    shown = commands.here(*shlex.split(hint), "--json")

    assert shown.document["order_id"] == order_id


def test_an_order_may_be_as_large_as_the_rule_allows(commands: Commands, database: Database) -> None:
    wide = unique("w") + _CART * 118
    order = _longest(wide, wide)
    asyncio.run(_sold(database, wide, *(line.sku for line in order.lines)))
    commands.ready_worker()
    lines = [f"--line={line.sku}:1" for line in order.lines]

    done = commands.here("start", f"--order-id={wide}", f"--customer={wide}", *lines, "--json")
    refused = commands.here(
        "start", f"--order-id=-{wide[1:]}", "--customer=alice", "--line=nothing:1", *lines[1:], "--json"
    )

    assert done.document["status"] == "completed", done.err
    assert (refused.code, refused.document["status"]) == (3, "rejected")
    assert refused.document["reason"] == "UnknownSku: the catalogue has no nothing"


async def test_orders_of_a_batch_may_have_any_ids(shop: Shop, database: Database) -> None:
    await _sold(database, *_NASTY)
    tail = unique("")
    orders = [CheckoutInput(f"{name} {tail}", name, (OrderLine(name, 1),)) for name in _NASTY]
    orders.append(_longest(_CART * 100 + tail, "alice"))
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")

    async with shop.working():
        outcomes = await checkouts.process(orders)
        report = await shop.audit()

    assert [(o.order_id, o.status) for o in outcomes] == [
        *((order.order_id, "completed") for order in orders[:-1]),
        (orders[-1].order_id, "rejected"),
    ]
    assert len(outcomes[-1].reason or "") <= 500
    assert report.violation_count == 0


async def test_a_page_of_the_largest_orders_fits_into_what_temporal_takes(shop: Shop) -> None:
    orders = [_longest(f"{unique('')}{_CART * 100}", "alice") for _ in range(12)]
    await shop.accept_by_hand(*orders)
    sweep = Sweep(shop.engine)

    pages = [await sweep.find_unfinished(UnfinishedInput(100, 0.0))]
    while (next_at := pages[-1].next_at) is not None:
        pages.append(await sweep.find_unfinished(UnfinishedInput(100, 0.0, next_at, pages[-1].next_id)))
    found = [order for page in pages for order in page.orders]

    assert max(sum(map(payload_bytes, page.orders)) for page in pages) < 1_500_000
    assert sorted(order.order_id for order in found) == sorted(order.order_id for order in orders)
    assert payload_bytes(orders[0]) < CheckoutInput.max_payload_bytes
    assert len(json.dumps([line.sku for line in orders[0].lines])) > CheckoutInput.max_payload_bytes / 2
