"""Faults in the test kit: what it would not notice, and where it would cry wolf."""

from tests.mutants.killers import KIT_MOVING, KIT_ON_DECLARED, KIT_UNIT, PLUGIN, STRIKES, at
from tests.mutants.mutant import Mutant

_LOCAL_FIRST = "test_a_correct_saga_whose_steps_are_local_first_keeps_its_promises"
_CORRECT = "test_a_correct_saga_keeps_its_promises"
_CAUGHT = "test_a_mistake_is_caught"
_LOST = "test_an_effect_outside_of_the_transaction_is_found_where_the_transaction_is_lost"

MUTANTS = (
    Mutant(
        "kit-siblings-have-done-nothing",
        "a correct saga with steps side by side would be blamed for what the others have done",
        "sagafence/testing/plan.py",
        "        beside = self.beside(step)\n        names = {",
        "        beside: Sequence[Step] = []\n        names = {",
        at(KIT_UNIT, "test_what_steps_side_by_side_have_done_is_between_nothing_and_all_of_it"),
    ),
    Mutant(
        "kit-any-effect-of-siblings-is-right",
        "an effect that no step describes would pass while steps run side by side",
        "sagafence/testing/plan.py",
        "        names = {*self.least, *self.most, *change}",
        "        names = {*self.least, *self.most}",
        at(KIT_UNIT, "test_bounds_allow_what_is_between_them_and_nothing_else"),
    ),
    Mutant(
        "kit-keeps-the-transaction-that-it-loses",
        "a request that a step sends outside of its transaction would pass",
        "sagafence/testing/commits.py",
        '    event.listen(Engine, "commit", lose)\n    try:\n        yield loss\n    finally:\n'
        '        event.remove(Engine, "commit", lose)\n',
        "    loss.has_come = True\n    yield loss\n",
        at(KIT_ON_DECLARED, f"{_LOST}[room-do-commit-lost-+2]"),
    ),
    Mutant(
        "kit-loses-the-transactions-of-other-steps",
        "a case would be green although the step that it is about lost nothing",
        "sagafence/testing/commits.py",
        " and trial.faults.name_of(info.activity_type, info.activity_id) == name:",
        ":",
        at(KIT_ON_DECLARED, "test_a_case_whose_step_never_comes_to_a_commit_proves_nothing_and_says_so"),
    ),
    Mutant(
        "kit-turns-back-after-the-pivot",
        "the kit would ask a saga to unwind after its point of no return",
        "sagafence/testing/cases.py",
        " or (self.step is not None and self.plan.is_forward(self.step)):",
        ":",
        at(KIT_UNIT, "test_what_is_after_the_point_of_no_return_cannot_turn_the_saga_back"),
    ),
    Mutant(
        "kit-late-local-attempt-is-followed-by-one-that-works",
        "a correct saga whose local attempt is late completes, and would be blamed for it",
        "sagafence/testing/plays.py",
        "    if trial.case.is_local:  # the ordinary",
        "    if trial.case.is_past_local:  # the ordinary",
        at(KIT_MOVING, f"{_LOCAL_FIRST}[box-do-late]"),
    ),
    Mutant(
        "kit-never-gets-past-the-local-attempt",
        "no case would reach the ordinary attempt after the local one",
        "sagafence/testing/faults.py",
        "            if name in self._past_local:",
        "            if name not in self._past_local and not name:",
        at(KIT_MOVING, f"{_LOCAL_FIRST}[box-do-late-past-local]"),
    ),
    Mutant(
        "kit-takes-a-later-round-for-another-activity",
        "an undo that is stuck would work in its second round, before it is mended",
        "sagafence/testing/faults.py",
        '        by_id = _OF_A_ROUND.sub("", activity_id or "")\n',
        '        by_id = activity_id or ""\n',
        at(KIT_UNIT, "test_an_activity_is_named_by_its_id_where_a_step_does_and_by_its_type_elsewhere"),
    ),
    Mutant(
        "kit-does-not-look-at-the-sequence-of-undos",
        "a saga that undoes its first step first would pass",
        "sagafence/testing/trial.py",
        "        if not self.saga.undoes_in_order:",
        "        if self.saga.undoes_in_order:",
        at(KIT_MOVING, f"{_CAUGHT}[undone in the order of the steps]"),
    ),
    Mutant(
        "kit-strikes-the-undo-of-a-step-too",
        "a correct undo that repeats the request would hear 500 for ever",
        "sagafence/testing/struck.py",
        "            unless=lambda: trial.faults.attempts[step.undo] > 0,\n",
        "",
        at(KIT_MOVING, f"{_CORRECT}[van-provider-acts-then-500-for-good]"),
        hangs=True,
    ),
    Mutant(
        "kit-does-not-look-after-a-late-request",
        "an effect that comes after the undo would pass",
        "sagafence/testing/struck.py",
        "        await trial.is_all_or_nothing(ending)\n",
        "",
        at(KIT_MOVING, f"{_CAUGHT}[an undo looks, and believes that there is nothing]"),
    ),
    Mutant(
        "kit-calls-a-late-request-back",
        "a request would end with its caller, which none on the network does",
        "sagafence/testing/provider.py",
        "            return await asyncio.shield(task)\n",
        "            return await task\n",
        at(STRIKES, "test_what_is_held_up_goes_on_when_it_is_let_go_though_nobody_waits_any_more"),
    ),
    Mutant(
        "plugin-leaves-databases-behind",
        "every test of a stranger's would leave a database in the server",
        "sagafence_pytest.py",
        '        saga_postgres.psql("postgres", "-c", f\'DROP DATABASE "{name}" WITH (FORCE)\')\n',
        "        pass\n",
        at(PLUGIN, "test_a_first_test_needs_no_server_code_and_leaves_nothing_behind_when_it_fails"),
    ),
)
