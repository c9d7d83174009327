"""What Temporal's own UI makes of outside text: the page that shows summaries and details has no link in it."""

import asyncio
import random
import re
import urllib.request
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from client.checkouts import Checkouts
from devstack.stack import DevStack
from domain.model import CheckoutStatus, StepView
from domain.text import for_markdown, on_one_line
from tests import outside
from tests.conftest import Shop
from tests.workflow.sagas import how_it_ended
from tests.workflow.test_shown import details_of
from workflows import wording

OURS = {"p", "ul", "li", "ol", "code", "strong"}
EVIL = "![x](http://evil.test/a.png) [x](http://evil.test) <img src=//evil.test> http://evil.test/ `*x*` $x$"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def rendered(stack: DevStack, markdown: str) -> Page:
    """Have the UI's server render this, as the page does that shows a workflow's metadata."""
    url = f"http://127.0.0.1:{stack.ports.ui}/render?content={quote(markdown)}&theme=light"

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())

    html = await asyncio.to_thread(fetch)
    page = Page()
    page.feed(html[html.index("<main>") + len("<main>") : html.index("</main>")])
    return page


async def test_the_page_would_show_what_is_not_escaped(stack: DevStack) -> None:
    page = await rendered(stack, EVIL)

    assert {"a", "img"} <= page.tags


@pytest.mark.parametrize("text", [EVIL, "`" + EVIL, EVIL + "`", "a``b" + EVIL, "\\" + EVIL, EVIL.replace(" ", "\n\n")])
async def test_a_value_shows_as_it_was_written(stack: DevStack, text: str) -> None:
    page = await rendered(stack, f"value {for_markdown(text)} end")

    assert page.tags <= OURS
    assert page.text.split() == f"value {on_one_line(text)} end".split()


async def test_no_text_from_outside_becomes_a_link_or_a_picture(stack: DevStack) -> None:
    draw = random.Random(20261128)
    for _ in range(10):
        texts = [outside.text(draw).replace("\udcff", "") for _ in range(60)]
        texts = [text for text in texts if not re.search("[\ud800-\udfff]", text)]
        lines = [
            wording.details(CheckoutStatus(text, "stuck", text, steps=[StepView("pay", "stuck", text)]), ["pay"])
            for text in texts
        ]

        page = await rendered(stack, "\n\n".join(lines))

        assert page.tags <= OURS, texts


async def test_a_reason_that_somebody_gave_is_text_in_the_details(shop: Shop, stack: DevStack) -> None:
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    order = shop.order()
    handle = await shop.start(order)
    async with shop.working():
        await checkouts.cancel(order.order_id, EVIL)
        await how_it_ended(handle)
        page = await rendered(stack, "\n".join(await details_of(handle)))

    assert page.tags <= OURS
    assert EVIL in page.text
