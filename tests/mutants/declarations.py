"""Faults in the checks of declarations: each would let a mistake through to the middle of a saga."""

from tests.mutants.killers import DECLARATIONS, at
from tests.mutants.mutant import Mutant

_DECLARE = "sagafence/declare.py"
_SIGNATURE = "sagafence/signature.py"
_KILLERS = at(
    DECLARATIONS,
    "test_it_is_refused_where_it_is_written",
    "test_a_type_that_the_converter_cannot_read_back_is_refused",
    "test_a_type_that_it_can_is_taken",
)

MUTANTS = (
    Mutant(
        "declared-undo-takes-its-steps-name",
        "an undo named as its step would take its place in the class, and the step would be gone",
        _DECLARE,
        "        if fn.__name__ == self.fn.__name__:\n            raise SagaMisuse(f'the undo",
        "        if False:\n            raise SagaMisuse(f'the undo",
        _KILLERS,
    ),
    Mutant(
        "declared-step-overridden-unseen",
        "a subclass's plain method would be ignored: the base's step would run",
        _DECLARE,
        "            if not isinstance(getattr(cls, attribute), Step):\n",
        "            if False:\n",
        _KILLERS,
    ),
    Mutant(
        "declared-lookup-finds-none",
        "a step whose result is None would count as absent, and its effect would stay after its undo",
        _DECLARE,
        "        if self.lookup_fn is not None and may_be_none(self.result_type):\n",
        "        if False:\n",
        _KILLERS,
    ),
    Mutant(
        "declared-generic-dataclass-taken",
        "a step with a generic dataclass would fail when its payload is decoded",
        _SIGNATURE,
        "    elif dataclasses.is_dataclass(kind):\n        parts = list(get_type_hints(kind).values())\n",
        "    elif dataclasses.is_dataclass(origin or kind):\n"
        "        parts = list(get_type_hints(origin or kind).values())\n",
        _KILLERS,
    ),
    Mutant(
        "declared-any-name",
        "a name that neither Postgres nor Temporal takes would fail in the middle of a saga",
        _SIGNATURE,
        " or not name.isprintable() or len(name) > _LONGEST_NAME",
        "",
        _KILLERS,
    ),
)
