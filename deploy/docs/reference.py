"""Make a reference of the library's public names, with pdoc, strictly.

    make docs

A name without a docstring, a type that cannot be resolved, a name in backquotes that does not exist, and a link that
leads nowhere are errors: then nothing is written, and the status is 1.
"""

import argparse
import inspect
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pdoc
import pdoc.doc
import pdoc.doc_ast
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = ("sagafence", "sagafence.testing")
_QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# What reads as a name of the library: `sagafence.ddl`, `Saga`, `Saga.do`. Anything else is a word, a value or SQL.
_NAME = re.compile(r"sagafence(\.\w+)+|[A-Z][a-z]\w*(\.\w+)*")
_ELSEWHERE = ("builtins", "temporalio.client", "temporalio.common", "temporalio.exceptions", "temporalio.worker")


def load() -> None:
    """Put the names that are loaded late where pdoc looks for them."""
    for module in MODULES:
        for name in import_module(module).__all__:
            setattr(import_module(module), name, getattr(import_module(module), name))


def show_inherited() -> None:
    """Let a class show what it has from a base of the library that is not public, as if it had declared it."""
    public = {(value.__module__, value.__qualname__) for value in _public() if inspect.isclass(value)}

    def is_hidden(origin: tuple[str, str]) -> bool:
        return origin[0].split(".")[0] == "sagafence" and origin not in public

    declared, inherited = pdoc.doc.Class.own_members.func, pdoc.doc.Class.inherited_members.func

    def own_members(cls: pdoc.doc.Class) -> list[pdoc.doc.Doc[Any]]:
        others = inherited(cls)
        return [*declared(cls), *(each for origin in others if is_hidden(origin) for each in others[origin])]

    def inherited_members(cls: pdoc.doc.Class) -> dict[tuple[str, str], list[pdoc.doc.Doc[Any]]]:
        return {origin: members for origin, members in inherited(cls).items() if not is_hidden(origin)}

    for replaced in (own_members, inherited_members):
        lasting = cached_property(replaced)
        setattr(pdoc.doc.Class, replaced.__name__, lasting)
        lasting.__set_name__(pdoc.doc.Class, replaced.__name__)


def show_values() -> None:
    """Let a value, such as a decorator, show the docstring that stands below it where it is defined."""
    said: dict[str, str] = {}
    for name in [name for name in sys.modules if name.startswith("sagafence.")]:
        said |= pdoc.doc_ast.walk_tree(sys.modules[name]).var_docstrings
    own = pdoc.doc.Module._var_docstrings.func  # noqa: SLF001 - pdoc has no other place for it

    def var_docstrings(module: pdoc.doc.Module) -> dict[str, str]:
        public = getattr(module.obj, "__all__", ())
        found: dict[str, str] = {name: text for name, text in said.items() if name in public} | own(module)
        return found

    lasting = cached_property(var_docstrings)
    pdoc.doc.Module._var_docstrings = lasting  # noqa: SLF001 - see above
    lasting.__set_name__(pdoc.doc.Module, "_var_docstrings")


def _public() -> Iterator[Any]:
    for module in MODULES:
        yield from (getattr(import_module(module), name) for name in import_module(module).__all__)


def documents() -> Iterator[pdoc.doc.Doc[Any]]:
    """Yield each module, each public name, and the library's own members of each class."""
    for name in MODULES:
        module = pdoc.doc.Module(import_module(name))
        yield module
        for member in module.members.values():
            yield member
            if isinstance(member, pdoc.doc.Class):
                yield from (each for each in member.own_members if not each.name.startswith("_"))


def undocumented(doc: pdoc.doc.Doc[Any]) -> Iterator[str]:
    """Say which name has no docstring. A field or a constant may do without: its class says what it is."""
    text = doc.docstring
    if isinstance(doc, pdoc.doc.Class):
        text = vars(doc.obj).get("__doc__") or ""  # not its base's, nor what @dataclass puts there
        text = "" if text.startswith(f"{doc.name}(") else text
    if not text.strip() and not isinstance(doc, pdoc.doc.Variable):
        yield f"{doc.fullname} has no docstring"


def unresolved(doc: pdoc.doc.Doc[Any]) -> Iterator[str]:
    """Say which names in backquotes are neither in the library's reference nor Python's, Temporal's or SQLAlchemy's."""
    for quoted in _QUOTED.findall(doc.docstring):
        if _NAME.fullmatch(quoted) and not _resolves(quoted):
            yield f"{doc.fullname} speaks of `{quoted}`, which is no public name"


def _resolves(name: str) -> bool:
    if name in MODULES:
        return True
    for home in sorted(MODULES, reverse=True):
        first, *path = name.removeprefix(f"{home}.").split(".")
        if first in import_module(home).__all__:
            return _has(getattr(import_module(home), first), path)
        if name.startswith(f"{home}."):
            return False
    return any(_has(import_module(home), name.split(".")) for home in _ELSEWHERE)


def _has(value: Any, path: list[str]) -> bool:
    for name in path:
        if name not in getattr(value, "__dataclass_fields__", ()) and not hasattr(value, name):
            return False
        value = getattr(value, name, None)
    return True


def broken_links(folder: Path) -> Iterator[str]:
    """Say which links within the pages lead nowhere."""
    pages = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for target in set(re.findall(r'\bhref="([^"]+)"', text)):
            if "://" in target or target.startswith(("data:", "$")):  # the last is made in the browser
                continue
            file, _, anchor = target.partition("#")
            goal = (folder / page).parent.joinpath(file).resolve() if file else (folder / page).resolve()
            name = goal.relative_to(folder.resolve()).as_posix() if goal.is_relative_to(folder.resolve()) else file
            if name not in pages or (anchor and anchor not in anchors[name]):
                yield f"{page} links to {target}, which is not there"


def main() -> int:
    """Make the reference, and return the exit status."""
    parser = argparse.ArgumentParser(description="Make a reference of the library's public names.")
    parser.add_argument("folder", type=Path, help="where to write it; what is there is replaced")
    folder: Path = parser.parse_args().folder
    sys.path.insert(0, str(ROOT))
    load()
    show_inherited()
    show_values()
    pdoc.render.configure(docformat="google", show_source=True, search=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        problems = [problem for doc in documents() for check in (undocumented, unresolved) for problem in check(doc)]
        shutil.rmtree(folder, ignore_errors=True)
        pdoc.pdoc(MODULES[0], "!sagafence[.].*", MODULES[1], "!sagafence[.]testing[.].*", output_directory=folder)
    problems += sorted({str(warning.message) for warning in said})
    problems += sorted(broken_links(folder))
    if problems:
        shutil.rmtree(folder)
        sys.stderr.write("\n".join(problems) + f"\n{len(problems)} problems: there is no reference.\n")
        return 1
    sys.stdout.write(f"{folder / 'index.html'}: {len(list(documents()))} names\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
