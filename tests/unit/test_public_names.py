"""The public names of the library: they change on purpose, and each has a docstring."""

import difflib
import inspect
from importlib import import_module

import pytest

from tests.record_public_names import MODULES, RECORDING, public_names

_WHAT_TO_DO = """The library's public names are not the recorded ones. If that is meant:
1. `.venv/bin/python -m tests.record_public_names` records them anew;
2. write a line into sagafence/CHANGELOG.md, and what its users have to do where a name went or changed.
"""


def test_the_public_names_are_the_recorded_ones() -> None:
    recorded = RECORDING.read_text(encoding="utf-8").splitlines()

    changed = [
        line
        for line in difflib.unified_diff(recorded, public_names(), "recorded", "now", n=0, lineterm="")
        if not line.startswith("@@")
    ]

    assert changed == [], _WHAT_TO_DO + "\n".join(changed)


@pytest.mark.parametrize("module", MODULES)
def test_all_names_are_sorted_and_come_from_a_module_of_the_library(module: str) -> None:
    names = import_module(module).__all__

    assert len({*names}) == len(names)
    for name in names:
        value = getattr(import_module(module), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("sagafence."), name
            assert value.__name__ == name
