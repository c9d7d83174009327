"""One small fault, put into the product on purpose, and the tests that must notice it."""

from dataclasses import dataclass
from pathlib import Path


class Stale(Exception):
    """The code has moved on: a mutant does not fit it any more."""


@dataclass(frozen=True)
class Mutant:
    """A fault with a name.

    `before` stands exactly once in `file`, and `after` takes its place. `killer` names the narrowest tests that
    must fail of it. Where the fault lets a test wait for ever, `hangs` says that a timeout counts as a kill.
    """

    name: str
    why: str
    file: str
    before: str
    after: str
    killer: tuple[str, ...]
    hangs: bool = False

    def applied_to(self, root: Path) -> str:
        """Give the file's text with the fault in it.

        Raises:
            Stale: the text to replace is not there, or not once.
        """
        path = root / self.file
        if not path.is_file():
            raise Stale(f"{self.name}: there is no {self.file}")
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.before)) != 1:
            raise Stale(f"{self.name}: its text stands {found} times in {self.file}, not once")
        return text.replace(self.before, self.after)
