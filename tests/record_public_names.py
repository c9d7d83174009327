"""Records the public names of the library, with their parameters, fields and members.

python -m tests.record_public_names
"""

import enum
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import sagafence_pytest
from sagafence_pytest import saga_client

RECORDING = Path(__file__).parent / "public_names.txt"
MODULES = ("sagafence", "sagafence.testing")


def public_names() -> list[str]:
    """Give one line for each name."""
    found = [line for module in MODULES for line in _names_of(module)]
    return [*found, *_fixtures()]


def _names_of(module: str) -> Iterator[str]:
    for name in sorted(import_module(module).__all__):
        value = getattr(import_module(module), name)
        if inspect.isclass(value):
            yield from _class(f"{module}.{name}", value)
        else:
            yield f"{module}.{name}{_parameters(value) if inspect.isfunction(value) else ''}"


def _class(path: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {path}({bases})"
    if issubclass(cls, enum.Enum):
        yield from (f"{path}.{member.name} = {member.value!r}" for member in cls)
        return
    if _is_ours(cls, "__init__") or hasattr(cls, "__dataclass_fields__"):
        yield f"{path}.__init__{_parameters(cls.__init__)}"
    yield from (f"{path}.{name}: field" for name in sorted(getattr(cls, "__dataclass_fields__", ())))
    for name in sorted(dir(cls)):
        if name.startswith("_") or not _is_ours(cls, name) or name in getattr(cls, "__dataclass_fields__", ()):
            continue
        value = inspect.getattr_static(cls, name)
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        yield f"{path}.{name}{_parameters(value) if inspect.isfunction(value) else ''}"


def _is_ours(cls: type, name: str) -> bool:
    home = next((each for each in cls.__mro__ if name in vars(each)), object)
    return home.__module__.split(".")[0] == "sagafence"


def _parameters(value: Any) -> str:
    """Give a signature without types and defaults, which differ in how the versions of Python print them."""
    signature = inspect.signature(value)
    bare = [
        each.replace(annotation=each.empty, default=each.empty if each.default is each.empty else ...)
        for each in signature.parameters.values()
    ]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty)).replace("=Ellipsis", "=...")
    return f"{text} async" if inspect.iscoroutinefunction(value) else text


def _fixtures() -> Iterator[str]:
    for name, value in sorted(vars(sagafence_pytest).items()):
        if isinstance(value, type(saga_client)):
            yield f"fixture {name}"


def main() -> None:
    """Write down what is there."""
    lines = public_names()
    RECORDING.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(lines)} names in {RECORDING}\n")


if __name__ == "__main__":
    main()
