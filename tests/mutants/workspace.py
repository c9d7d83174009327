"""Faults in the second example, and in the provider that it is tried against."""

from tests.mutants.killers import WORKSPACE, WORKSPACE_ANSWERS, WORKSPACE_PROVIDER, at
from tests.mutants.mutant import Mutant

_STATE = "examples/workspace/provider/state.py"
_API = "examples/workspace/provider/api.py"
_PROVIDERS = "examples/workspace/providers.py"
_STEPS = "examples/workspace/steps.py"

MUTANTS = (
    Mutant(
        "workspace-provider-takes-other-content",
        "a key would answer for a request that it was never used for",
        _STATE,
        'if row["content_hash"] != content_hash:',
        "if False:",
        at(WORKSPACE_PROVIDER, "test_a_key_with_other_content_is_refused_and_nothing_happens"),
    ),
    Mutant(
        "workspace-provider-works-twice-at-once",
        "two requests under one key would both act",
        _STATE,
        "            if (path, key) in self._in_progress:",
        "            if False:",
        at(WORKSPACE_PROVIDER, "test_a_key_is_in_progress_while_its_first_request_is_at_work"),
    ),
    Mutant(
        "workspace-provider-void-blocks-nothing",
        "a charge that arrives after its void would be made",
        _API,
        'if rows(database, "SELECT 1 FROM voids WHERE key = ?", request.key):',
        "if False:",
        at(WORKSPACE_PROVIDER, "test_a_key_that_was_voided_first_is_never_billed"),
    ),
    Mutant(
        "workspace-provider-void-beside-a-charge",
        "a void would block a key under which a charge is being made",
        _API,
        'if self._state.is_in_progress("/invoices", key):',
        "if False:",
        at(WORKSPACE_PROVIDER, "test_a_key_is_in_progress_while_its_first_request_is_at_work"),
    ),
    Mutant(
        "workspace-500-is-a-refusal",
        "a workspace that was billed would be taken away",
        _PROVIDERS,
        "answer.raise_for_status()",
        "raise ProviderRefused(answer.text)",
        at(WORKSPACE, "test_while_nobody_knows_whether_it_was_billed_nothing_is_undone"),
    ),
    Mutant(
        "workspace-in-progress-is-a-refusal",
        "a workspace would be undone because its own first request is slow",
        _PROVIDERS,
        'said["error"] == "in_progress" or',
        "",
        at(WORKSPACE_ANSWERS, "test_an_answer_means"),
    ),
    Mutant(
        "workspace-void-loses-the-invoice",
        "a workspace that was billed would be taken away",
        _STEPS,
        'return Stands(int(said["invoice"]["id"]))',
        "return None",
        at(WORKSPACE, "test_while_nobody_knows_whether_it_was_billed_nothing_is_undone"),
    ),
    Mutant(
        "workspace-tenant-stays",
        "a workspace that was refused would leave its tenant",
        _STEPS,
        'meaning(await self._http.delete(f"/tenants/{seen.result}"))',
        "pass",
        at(WORKSPACE, "test_a_refusal_names_its_cause_and_leaves_nothing"),
    ),
)
