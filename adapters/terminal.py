"""A console of rich that shows outside text as text: no markup, no emoji, no control characters, no links.

A value that is to stay on its line comes through `domain.text.on_one_line`; the console itself keeps line ends.
"""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from adapters.streams import raw
from domain.text import for_terminal


class Terminal(Console):
    """A console for values of any origin. What is to be styled comes as `Text`: see `styled`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def file(self) -> IO[str]:
        """Write past the clean stream: the colours and the movements of a progress bar are our own."""
        return raw(super().file)  # type: ignore[arg-type]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and clean all but the controls of rich itself."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(for_terminal(text), style)


def styled(markup: str) -> Text:
    """Read rich's markup in a text of our own. Put no value into it."""
    return Text.from_markup(markup, emoji=False)
