"""A rich console that prints text of any origin as text: no markup, emoji, control characters or links.

It keeps line ends: `domain.text.on_one_line` takes them out of a value.
"""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from adapters.streams import raw
from domain.text import for_terminal


class Terminal(Console):
    """A console for values of any origin. Styled text is a `Text`: see `styled`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def file(self) -> IO[str]:
        """The stream behind the clean one: colours and the movements of a progress bar are our own."""
        return raw(super().file)  # type: ignore[arg-type]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and clean all but rich's own control codes."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(for_terminal(text), style)


def styled(markup: str) -> Text:
    """Read rich's markup in a text of our own; never put a value into it."""
    return Text.from_markup(markup, emoji=False)
