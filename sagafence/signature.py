"""Checks of a declaration that only its source can answer for: signatures, type hints, results that can be stored."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

_PLAIN = (bool, int, float, str, datetime, UUID, types.NoneType)
_CONTAINERS = (list, tuple, set, frozenset, dict, typing.Union, types.UnionType, typing.Literal, Sequence)

_LONGEST_NAME = 100
_KEYS = (str, int, float, bool)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class SagaMisuse(TypeError):
    """The program is wrong. Raised where it is written: by a class definition, at worker start, in a workflow task."""


def require_method(fn: Callable[..., Any], what: str, takes: Sequence[str]) -> None:
    """Require an async method with as many parameters as `takes` names.

    Raises:
        SagaMisuse: it is none.
    """
    name = getattr(fn, "__qualname__", repr(fn))
    if not inspect.iscoroutinefunction(fn):
        raise SagaMisuse(f"{what} must be an async method: write `async def` before {name}")
    parameters = inspect.signature(fn).parameters.values()
    # It is called by position.
    if len(parameters) != len(takes) or any(one.kind not in _BY_POSITION for one in parameters):
        raise SagaMisuse(f"{what} takes ({', '.join(takes)}); {name} takes {inspect.signature(fn)}")


def require_name(name: object) -> None:
    """Require a name that a key, a row of the fence and an activity id can have.

    Raises:
        SagaMisuse: it cannot be one.
    """
    if not isinstance(name, str):
        raise SagaMisuse(f'a step needs a name, as in @local("seat"), before its function; it has {name!r}')
    if not name.strip() or "/" in name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise SagaMisuse(
            f"a step needs a name of at most {_LONGEST_NAME} printable characters "
            f'without "/", which separates it in keys; this one has {name!r}'
        )


def may_be_none(kind: Any) -> bool:
    """Tell whether None is a value of a type."""
    return kind is None or kind is types.NoneType or types.NoneType in get_args(kind)


def step_types(fn: Callable[..., Any], where: str) -> tuple[Any, Any, Any]:
    """Return the types of a step's second parameter, of its input and of its result.

    Raises:
        SagaMisuse: one is not annotated, cannot be found at run time, or cannot be stored as JSON.
    """
    try:
        hints = get_type_hints(fn)
    except NameError as error:
        raise SagaMisuse(f"{where}: {error}. Its types are needed at run time: no TYPE_CHECKING block") from error
    names = [*list(inspect.signature(fn).parameters)[1:], "return"]
    if missing := [name for name in names if name not in hints]:
        raise SagaMisuse(f"{where} has no type for {', '.join(missing)}: its payloads could not be decoded")
    second, given, result = (hints[name] for name in names)
    for what, kind in ((names[1], given), ("its result", result)):
        if problem := not_storable(kind):
            raise SagaMisuse(f"{where}: {problem} in the type of {what} does not become JSON and back. Use dataclasses")
    return second, given, result


def require_takes(fn: Callable[..., Any], where: str, given: Sequence[Any]) -> None:
    """Require that what an undo is called with is what its parameters are annotated as, where they are classes.

    Raises:
        SagaMisuse: a parameter is annotated with another class.
    """
    try:
        hints = get_type_hints(fn)
    except NameError as error:
        raise SagaMisuse(f"{where}: {error} in its undo. Its types are needed at run time") from error
    for name, kind in zip(list(inspect.signature(fn).parameters)[1:], given, strict=False):
        wanted = hints.get(name, Any)
        if isinstance(wanted, type) and isinstance(kind, type) and not issubclass(kind, wanted):
            raise SagaMisuse(
                f"{where}: its undo takes {name} as {wanted.__name__}, and gets it as {kind.__name__}, as its step does"
            )


def not_storable(kind: Any, seen: tuple[Any, ...] = ()) -> str | None:
    """Name the part of a type that Temporal's JSON converter cannot write and read back, or None.

    Types that say themselves how they become JSON (pydantic's models) are taken at their word.
    """
    if kind is Any or kind in _PLAIN or kind in seen or isinstance(kind, TypeVar) or hasattr(kind, "model_validate"):
        return None
    if supertype := getattr(kind, "__supertype__", None):  # a NewType
        return not_storable(supertype, seen)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Literal:
        return None
    if origin is dict and not (isinstance(arguments[0], type) and issubclass(arguments[0], _KEYS)):
        return f"the key {getattr(arguments[0], '__name__', arguments[0])} of a dict"
    if origin in _CONTAINERS or (origin is not None and issubclass(origin, Sequence)):
        parts: Sequence[Any] = [one for one in arguments if one is not Ellipsis]
    elif kind in (list, tuple, set, dict) or typing.is_typeddict(kind):
        parts = list(get_type_hints(kind).values()) if typing.is_typeddict(kind) else []
    elif dataclasses.is_dataclass(kind):
        parts = list(get_type_hints(kind).values())
    elif isinstance(kind, type) and issubclass(kind, (StrEnum, IntEnum)):
        parts = []
    else:
        # A generic dataclass with its argument among them: the converter reads back none.
        return repr(kind) if origin is not None else getattr(kind, "__name__", repr(kind))
    return next((problem for part in parts if (problem := not_storable(part, (*seen, kind)))), None)
