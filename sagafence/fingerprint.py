"""The fingerprint of a request: what a repeat under the same id must have in common with the first."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(given: Any) -> str:
    """Return the SHA-256 of an input's content, as hexadecimal digits.

    Fields at their defaults count as absent: a field that is added with a default changes no running saga.
    """
    plain = json.dumps(_plain(given), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
    if dump := getattr(value, "model_dump", None):  # pydantic's
        return dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(one) for one in value), key=repr)
    return value


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is not dataclasses.MISSING and bool(value == field.default)
