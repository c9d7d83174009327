"""Sagas on Temporal whose steps take effect at most once, in Postgres or elsewhere, and are undone when one fails.

Workflow modules import from here without `workflow.unsafe.imports_passed_through`: what a workflow needs comes in
passed through, and what needs SQLAlchemy is loaded when it is asked for, which a workflow never does.
"""

from typing import TYPE_CHECKING

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from sagafence.calls import Resolution
    from sagafence.cancellation import Cancellation, wait_until
    from sagafence.compensation import (
        Compensation,
        Completed,
        Irrevocable,
        RetryBackoff,
        StepState,
        StillStuck,
        Unwound,
        describe,
        failure_of,
        find_cause,
    )
    from sagafence.declare import SagaSteps, external, local
    from sagafence.errors import (
        CallRejected,
        CannotConnect,
        CompensationImpossible,
        DatabaseMisconfigured,
        DatabaseRefusedStatement,
        DatabaseUnavailable,
        IdempotencyConflict,
        InvalidInput,
        KeyReused,
        NotSettledYet,
        OutcomeUnknown,
        Refusal,
        SagaError,
        StepAlreadyCompensated,
        StoredFailure,
        VerdictRefused,
    )
    from sagafence.operation import perform
    from sagafence.policy import STEP_POLICY, UNDO_ATTEMPTS_WHEN_REFUSED, UNDO_POLICY, ActivityPolicy, retry_policy
    from sagafence.provider import Keeps, Key, Known, Provider, Seen, Settles, Stands, Unknown, Verdict
    from sagafence.saga import Saga
    from sagafence.saga_workflow import SagaCancelled, SagaPurged, SagaStatus, SagaUnwound, SagaWorkflow, StepStatus
    from sagafence.signature import SagaMisuse
    from sagafence.sweep import Purged, PurgeInput, Sweep, SweepInput, SweepReport
    from sagafence.undo import UndoOutcome, UndoResult

if TYPE_CHECKING:
    from sagafence.database import (
        classify,
        drop_useless_sessions,
        single_statement,
        sqlstate,
        transaction,
        translated_errors,
        violated_constraint,
    )
    from sagafence.external_steps.people import resolve_late
    from sagafence.fence import GATE, FenceKey, Undoing, do_once, limited_refusals, resolve_once, undo_once
    from sagafence.lost import sweep_activities
    from sagafence.postgres import PostgresFence
    from sagafence.retention import purge
    from sagafence.schema import SchemaMissing, check, install
    from sagafence.tables import ddl

_LOADED_LATE = {
    **dict.fromkeys(
        (
            "classify",
            "drop_useless_sessions",
            "single_statement",
            "sqlstate",
            "transaction",
            "translated_errors",
            "violated_constraint",
        ),
        "sagafence.database",
    ),
    **dict.fromkeys(
        ("GATE", "FenceKey", "Undoing", "do_once", "limited_refusals", "resolve_once", "undo_once"), "sagafence.fence"
    ),
    "PostgresFence": "sagafence.postgres",
    "ddl": "sagafence.tables",
    **dict.fromkeys(("SchemaMissing", "check", "install"), "sagafence.schema"),
    "purge": "sagafence.retention",
    "resolve_late": "sagafence.external_steps.people",
    "sweep_activities": "sagafence.lost",
}

__all__ = [
    "GATE",
    "STEP_POLICY",
    "UNDO_ATTEMPTS_WHEN_REFUSED",
    "UNDO_POLICY",
    "ActivityPolicy",
    "CallRejected",
    "Cancellation",
    "CannotConnect",
    "Compensation",
    "CompensationImpossible",
    "Completed",
    "DatabaseMisconfigured",
    "DatabaseRefusedStatement",
    "DatabaseUnavailable",
    "FenceKey",
    "IdempotencyConflict",
    "InvalidInput",
    "Irrevocable",
    "Keeps",
    "Key",
    "KeyReused",
    "Known",
    "NotSettledYet",
    "OutcomeUnknown",
    "PostgresFence",
    "Provider",
    "PurgeInput",
    "Purged",
    "Refusal",
    "Resolution",
    "RetryBackoff",
    "Saga",
    "SagaCancelled",
    "SagaError",
    "SagaMisuse",
    "SagaPurged",
    "SagaStatus",
    "SagaSteps",
    "SagaUnwound",
    "SagaWorkflow",
    "SchemaMissing",
    "Seen",
    "Settles",
    "Stands",
    "StepAlreadyCompensated",
    "StepState",
    "StepStatus",
    "StillStuck",
    "StoredFailure",
    "Sweep",
    "SweepInput",
    "SweepReport",
    "UndoOutcome",
    "UndoResult",
    "Undoing",
    "Unknown",
    "Unwound",
    "Verdict",
    "VerdictRefused",
    "check",
    "classify",
    "ddl",
    "describe",
    "do_once",
    "drop_useless_sessions",
    "external",
    "failure_of",
    "find_cause",
    "install",
    "limited_refusals",
    "local",
    "perform",
    "purge",
    "resolve_late",
    "resolve_once",
    "retry_policy",
    "single_statement",
    "sqlstate",
    "sweep_activities",
    "transaction",
    "translated_errors",
    "undo_once",
    "violated_constraint",
    "wait_until",
]


def __getattr__(name: str) -> object:
    if name not in _LOADED_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - a workflow's own import of this module needs it not

    with workflow.unsafe.imports_passed_through():
        return getattr(import_module(_LOADED_LATE[name]), name)
