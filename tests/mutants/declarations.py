"""Faults in the checks of declarations and resolutions, and where a declared saga only goes forward."""

from tests.mutants.killers import DECLARATIONS, DECLARED_SAGA, at
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
    Mutant(
        "declared-saga-ends-where-it-cannot-go-forward",
        "a run past the pivot whose story fails twice would be recorded as ended, with its last steps never done",
        "sagafence/saga_workflow.py",
        "                await saga.cancellation.protect(saga.wait_to_go_forward())\n",
        "                break\n",
        at(DECLARED_SAGA, "test_a_saga_past_its_pivot_that_cannot_go_forward_is_stuck_and_has_not_ended"),
    ),
    Mutant(
        "declared-result-of-any-type",
        "an operator's wrong result would fail every workflow task from then on",
        "sagafence/resolutions.py",
        "is_told and (problem := _unfit(said.result, step.result_type)):",
        "is_told and (problem := None):",
        at(DECLARED_SAGA, "test_a_result_that_is_none_of_the_steps_is_refused"),
    ),
    Mutant(
        "declared-timeout-after-the-pivot-unwinds",
        "a timeout of the story's own after the pivot would begin an unwind",
        "sagafence/saga.py",
        "        except (FailureError, TimeoutError) as error:\n            if self._is_past_pivot:",
        "        except FailureError as error:\n            if self._is_past_pivot:",
        at(DECLARED_SAGA, "test_a_failure_of_the_storys_own_after_the_pivot_is_a_mistake_of_the_program"),
    ),
    Mutant(
        "undo-gets-another-kind-of-transaction",
        "the first undo of a saga would fail for ever, where the class could have been refused",
        "sagafence/declare.py",
        "            require_takes(self.undo_fn, where, self._undo_gets())\n",
        "            pass\n",
        at(DECLARATIONS, "test_it_is_refused_where_it_is_written"),
    ),
)
