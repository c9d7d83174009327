"""The API with the operator page on a port of its own, and a browser with somebody who has a keyboard alone."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Playwright, async_playwright

from devstack.stack import DevStack
from tests.conftest import Shop
from tests.http_api.conftest import Api, reader_url, serving
from tests.web.operator_at_work import PATIENCE_MS, Operator

_FETCHED = Path(sys.prefix) / "browser"
_NOT_THERE = (
    "{} is missing, so the operator page cannot be tested. `make .venv/browser/ok` fetches a browser for Linux from "
    "npm and unpacks it: it needs Node.js 20 or newer, with npm. With CHROMIUM=/path/to/chrome set, the tests use that "
    "browser."
)
# As root there is no sandbox; and no graphics card is wanted.
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-zygote", "--font-render-hinting=none")
_FAILED_ANSWER = "Failed to load resource: the server responded with a status of"


@pytest.fixture
async def api(shop: Shop, stack: DevStack, tmp_path: Path) -> AsyncIterator[Api]:
    """The API with the page, with no worker running yet."""
    async with serving(shop.client, shop.task_queue, reader_url(stack, shop), tmp_path) as running:
        yield running


def program() -> Path:
    """Find the browser; without one, fail."""
    found = Path(os.environ.get("CHROMIUM") or _FETCHED / "chromium")
    if not found.exists():
        pytest.fail(_NOT_THERE.format(found))
    return found


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe, which finds what does not meet WCAG."""
    script = _FETCHED / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.fail(_NOT_THERE.format(script))
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
async def playwright() -> AsyncIterator[Playwright]:
    async with async_playwright() as running:
        yield running


@pytest.fixture(scope="session")
async def browser(playwright: Playwright) -> AsyncIterator[Browser]:
    running = await playwright.chromium.launch(executable_path=program(), args=_ARGUMENTS)
    yield running
    await running.close()


@dataclass
class Desks:
    """Opens the page for one operator after another; each has a browser session of their own."""

    browser: Browser
    url: str
    complaints: list[str] = field(default_factory=list)
    """What the browser said against the page: errors of scripts, and what the content policy refuses."""

    @asynccontextmanager
    async def open(self, where: str = "", *, width: int = 1280, dark: bool = False) -> AsyncIterator[Operator]:
        """Open an address of the page inside the block."""
        context = await self.browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            timezone_id="Asia/Kolkata",
            locale="en-GB",
        )
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(f"{self.url}{where}")
        yield Operator(page)
        await context.close()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and _FAILED_ANSWER not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
async def desks(browser: Browser, api: Api) -> AsyncIterator[Desks]:
    made = Desks(browser, f"{api.url}/ui")
    yield made
    assert made.complaints == []
