"""An operator who has a keyboard and no mouse, and what they find on the page."""

from dataclasses import dataclass
from typing import Any

from playwright.async_api import Locator, Page, expect

from tests.workflow.gates import PATIENCE_SECONDS

PATIENCE_MS = PATIENCE_SECONDS * 1000
expect.set_options(timeout=PATIENCE_MS)
_MOST_TABS = 80
_FOCUSED = """() => {
    const element = document.activeElement;
    const label = element.labels?.[0]?.textContent ?? "";
    const style = getComputedStyle(element);
    return { name: (label || element.textContent).trim(), outline: `${style.outlineStyle} ${style.outlineWidth}` };
}"""


@dataclass
class Operator:
    """One session at the page."""

    page: Page

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)

    async def types(self, text: str) -> None:
        await self.page.keyboard.type(text)

    async def sign_in(self, key: str) -> None:
        """Sign in; the field has the focus as the page opens."""
        await expect(self.heading("Sign in")).to_be_visible()
        await self.types(key)
        await self.press("Enter")

    async def focused(self) -> str:
        """Give the name of what has the focus."""
        return str((await self.page.evaluate(_FOCUSED))["name"])

    async def go_to(self, name: str) -> None:
        """Press Tab until something of that name has the focus, and can be seen to have it."""
        met = []
        for _ in range(_MOST_TABS):
            await self.press("Tab")
            found = await self.page.evaluate(_FOCUSED)
            met.append(found["name"])
            if found["name"].startswith(name):
                assert found["outline"].startswith("solid"), f"nobody sees that {name} has the focus"
                return
        raise AssertionError(f"Tab does not lead to {name!r}; it leads to {sorted(set(met))}")

    async def choose(self, name: str) -> None:
        """Go to something by Tab and press Enter."""
        await self.go_to(name)
        await self.press("Enter")

    def heading(self, text: str) -> Locator:
        return self.page.get_by_role("heading", name=text)

    async def sees(self, text: str) -> None:
        """Wait until a text is visible."""
        await expect(self.page.get_by_text(text).first).to_be_visible()

    async def sees_status(self, status: str) -> None:
        """Wait until the order that is shown has a status."""
        await expect(self.page.locator(".title .badge")).to_have_text(status)

    @property
    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    async def until_dialog_closes(self) -> None:
        # Gone, and not only hidden: the page moves the focus when it takes the dialog away.
        await expect(self.page.locator("dialog")).to_have_count(0)

    async def events(self) -> list[str]:
        """Give the titles of the events that are shown."""
        return await self.page.locator(".timeline strong").all_inner_texts()

    async def violations(self, axe: str) -> list[str]:
        """Ask axe about all that is shown now."""
        await self.page.evaluate(f"{axe};0")
        found: dict[str, Any] = await self.page.evaluate(
            "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })"
        )
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]

    async def overflow(self) -> int:
        """Give by how many pixels the page is wider than the window."""
        wide: int = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return wide
