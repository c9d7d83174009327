"""The page beside its buttons: the way in, the list, what it looks like, and what it does with texts from outside."""

import pytest
from playwright.async_api import Request, expect

from devstack.stack import ROOT
from domain.currencies import MINOR_UNITS
from domain.model import format_money
from http_api.keys import Scope
from tests.conftest import Shop
from tests.http_api.conftest import Api
from tests.web.conftest import Desks
from tests.web.operator_at_work import Operator

FILES = tuple((ROOT / "web").iterdir())
PENDING = """
    INSERT INTO orders (order_id, customer, created_at)
    SELECT 'pending-' || lpad(n::text, 3, '0'), $1, now() - make_interval(mins => n) FROM generate_series(1, $2) AS n
"""
WITH_REASON = (
    "INSERT INTO orders (order_id, customer, status, changed_by, ending, reason)"
    " VALUES ($1, $2, 'rejected', 'close', 'rejected', $3)"
)
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
RIGHT_TO_LEFT = "שלום/עולם %2F?#&"
PLACE = "document.activeElement.getBoundingClientRect().top"
PARSED = """async (text) => {
    const { parser } = await import("/ui/api.js");
    const parse = parser();
    return [...text].flatMap((character) => parse(character));
}"""
WRITTEN = """async (currencies) => {
    const { money } = await import("/ui/words.js");
    return currencies.flatMap((each) => [7, 123456].map((minor) => money(minor, each)));
}"""


COMING_BACK = """async () => {
    const { beforeNextStream } = await import("/ui/api.js");
    const lost = Array.from({ length: 40 }, () => beforeNextStream(null));
    const { fetch } = window;
    window.fetch = async () => new Response("{}", { status: 503, headers: { "Retry-After": "7" } });
    try {
        const { call } = await import("/ui/api.js");
        return [lost, beforeNextStream(await call("/v1/orders").catch((problem) => problem))];
    } finally {
        window.fetch = fetch;
    }
}"""
HISTORIES = """async (links) => {
    const { facts } = await import("/ui/story.js");
    const order = { lines: [], status: "completed", total_minor: null };
    return links.map((history) => facts({ ...order, links: { history } }).at(-1).querySelector("dd").textContent);
}"""


async def test_a_key_that_is_refused_leads_back_to_the_sign_in_and_a_new_one_to_where_one_was(
    shop: Shop, api: Api, desks: Desks
) -> None:
    await shop.database.fetch(WITH_REASON, "order-1", "bob", "OutOfStock: no lamp")
    key = api.key_for(Scope.READ)
    async with desks.open("#/orders/order-1") as operator:
        await operator.sign_in("ck_wrong_key")
        await operator.sees("with a key that is in effect")
        assert await operator.focused() == "API key"
        await operator.sign_in(api.key_for(Scope.BUY))
        await operator.sees("This needs the scope read or operate")
        await operator.sign_in(key)
        await operator.sees("OutOfStock: no lamp")
        assert key not in operator.page.url
        assert await operator.page.evaluate("localStorage.length") == 0

        await operator.choose("Audit")
        await operator.sees("No invariant is violated.")
        await operator.go_to("Run the audit now")
        api.keys.revoke(key.split("_")[1])
        await operator.press("Enter")
        await operator.sees("with a key that is in effect")
        await operator.sign_in(api.key)
        await operator.sees("No invariant is violated.")
        await operator.choose("Sign out")
        await expect(operator.heading("Sign in")).to_be_visible()
        assert await operator.page.evaluate("sessionStorage.length") == 0


async def test_a_list_is_filtered_turned_over_and_kept_up_to_date_without_moving_the_focus(
    shop: Shop, api: Api, desks: Desks
) -> None:
    await shop.database.fetch(PENDING, "carol", 60)
    await shop.database.fetch(WITH_REASON, "order-1", "bob", "OutOfStock: no lamp")
    async with shop.working(), desks.open() as operator:
        await operator.sign_in(api.key)
        await operator.sees("pending 60")
        await operator.go_to("Customer")
        await operator.types("carol")
        await operator.press("Enter")
        await operator.sees("rejected 0")
        await operator.choose("pending 60")
        await operator.sees("pending-050")
        await operator.choose("Older orders")
        await operator.sees("pending-060")
        await expect(operator.page.locator("tbody tr")).to_have_count(10)
        await operator.choose("Newest orders")

        await operator.go_to("pending-030")
        before = await operator.page.evaluate(PLACE)
        await shop.database.fetch("INSERT INTO orders (order_id, customer) VALUES ('the-newest', 'carol')")
        await expect(operator.page.get_by_role("link", name="the-newest")).to_have_count(1)
        assert await operator.focused() == "pending-030"
        assert abs(await operator.page.evaluate(PLACE) - before) < 2  # scrolling is by whole pixels
        await operator.press("Enter")
        await operator.sees_status("pending")
        await operator.page.go_back()
        await expect(operator.page.get_by_role("link", name="pending-030")).to_be_focused()


async def test_an_audit_is_run_and_its_result_said(shop: Shop, api: Api, desks: Desks) -> None:
    async with shop.working(), desks.open("#/audit") as operator:
        await operator.sign_in(api.key)
        await operator.sees("No invariant is violated.")
        await operator.choose("Run the audit now")
        await expect(operator.page.locator(".notice")).to_have_text("The audit has finished: nothing is violated.")


async def test_a_stream_that_breaks_is_resumed_after_its_last_event(shop: Shop, api: Api, desks: Desks) -> None:
    await shop.database.fetch("INSERT INTO orders (order_id, customer) VALUES ('order-1', 'carol')")
    asked: list[str | None] = []

    def note(request: Request) -> None:
        if request.url.endswith("/stream"):
            asked.append(request.headers.get("last-event-id"))

    async with shop.working(), desks.open("#/orders/order-1") as operator:
        operator.page.on("request", note)
        await operator.sign_in(api.key)
        await operator.sees("Live")
        api.services.end()
        await operator.sees("Connecting again")
        api.services.stop.clear()
        await operator.sees("Live")
        await shop.database.fetch(
            "UPDATE orders SET status = 'rejected', ending = 'rejected' WHERE order_id = 'order-1'"
        )
        await operator.sees("Nothing more will happen")
        assert await operator.events() == ["Order written by hand", "Order rejected, nothing kept"]
    assert asked == ["0", "1"]


async def test_texts_from_outside_are_shown_as_they_are(shop: Shop, api: Api, desks: Desks) -> None:
    await shop.database.fetch(WITH_REASON, SCRIPT, RIGHT_TO_LEFT, SCRIPT)
    await shop.database.fetch(WITH_REASON, RIGHT_TO_LEFT, SCRIPT, RIGHT_TO_LEFT)
    async with desks.open(width=360, dark=True) as operator:
        await operator.sign_in(api.key)
        for order_id in (SCRIPT, RIGHT_TO_LEFT):
            await operator.choose(order_id)
            await operator.sees_status("rejected")
            await expect(operator.page.locator("h1 bdi")).to_have_text(order_id)
            assert await operator.page.title() == f"Order {order_id} · Checkout"
            assert await operator.page.locator("main script, main img").count() == 0
            assert await operator.overflow() <= 0
            await operator.page.go_back()
            await operator.sees("As of")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)], ids=["wide and light", "narrow and dark"])
async def test_every_view_can_be_used_by_everybody(
    shop: Shop, api: Api, desks: Desks, axe: str, width: int, *, dark: bool
) -> None:
    await shop.database.fetch(PENDING, "c" * 128, 3)
    await shop.database.fetch(WITH_REASON, RIGHT_TO_LEFT, "bob", "x" * 300)

    async def check(operator: Operator) -> None:
        assert await operator.violations(axe) == []
        assert await operator.overflow() <= 0

    async with shop.working(), desks.open(width=width, dark=dark) as operator:
        ground = await operator.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(16, 20, 24)" if dark else "rgb(244, 246, 248)")
        await check(operator)
        await operator.sign_in(api.key)
        await operator.sees("pending-001")
        await check(operator)
        await operator.page.goto(f"{desks.url}#/audit")
        await operator.sees("No invariant is violated.")
        await check(operator)
        await operator.page.goto(f"{desks.url}#/orders/pending-001")
        await operator.sees("None: no workflow has been started for it.")
        await operator.sees("Order written by hand")
        at = operator.page.locator(".timeline time")
        assert (await at.get_attribute("datetime") or "").endswith("Z")
        assert (await at.get_attribute("title") or "").endswith("(UTC)")
        await operator.choose("Cancel the order")
        await check(operator)
        await operator.press("Escape")
        await operator.until_dialog_closes()
        assert await operator.focused() == "Cancel the order …"


async def test_the_first_view_is_small_and_comes_from_this_server_alone(api: Api, desks: Desks) -> None:
    assert sum(len(file.read_bytes()) for file in FILES) < 100_000
    for path in ("/ui", "/ui/"):
        answer = await api.http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "unsafe" not in answer.headers["content-security-policy"]
    asked: list[str] = []
    async with desks.open() as operator:
        operator.page.on("request", lambda request: asked.append(request.url))
        await operator.page.reload()
        await expect(operator.heading("Sign in")).to_be_visible()
    assert [url for url in asked if not url.startswith(f"{api.url}/ui")] == []


async def test_the_page_reads_streams_and_money_as_the_service_writes_them(desks: Desks) -> None:
    stream = ': hello\r\nretry: 2000\r\n\r\nid: 1\nevent: status\ndata: {"a":\ndata: 1}\n\n: ping\n\n'
    stream += "event: end\ndata: {}\n\n"
    amounts = [format_money(minor, currency) for currency in MINOR_UNITS for minor in (7, 123456)]
    async with desks.open() as operator:
        assert await operator.page.evaluate(PARSED, stream) == [
            {"type": "status", "data": '{"a":\n1}'},
            {"type": "end", "data": "{}"},
        ]
        assert await operator.page.evaluate(WRITTEN, list(MINOR_UNITS)) == amounts


async def test_pages_that_lost_their_streams_together_come_back_one_by_one_and_when_they_are_told(desks: Desks) -> None:
    async with desks.open() as operator:
        by_themselves, told = await operator.page.evaluate(COMING_BACK)

    assert len(set(by_themselves)) > 20
    assert all(2000 <= each <= 6000 for each in by_themselves)
    assert told == 7000


async def test_the_link_to_temporal_says_whose_history_it_is_or_why_there_is_none(desks: Desks) -> None:
    links = [f"http://ui.test/namespaces/default/workflows/{name}" for name in ("checkout-a%2Fb", "bulk-1")]
    async with desks.open() as operator:
        shown = await operator.page.evaluate(HISTORIES, [*links, "javascript:alert(1)", None])
    none = "None now: Temporal keeps histories for a limited time"
    assert shown[:2] == ["Open the history (new tab)", "Open the history of its batch (new tab)"]
    assert [text[: len(none)] for text in shown[2:]] == [none, none]
