"""What a versioned worker runs in place of the maintenance workflows: the same ones, on no version in particular.

An order is pinned to the version that it began on. A sweep must not be: one that waits for a version without
workers would hold up every later sweep of its schedule. So these move to whatever version is current. That
is said here and not where they are defined, because an unversioned worker cannot run a workflow that says it.
"""

from temporalio import workflow
from temporalio.common import VersioningBehavior

with workflow.unsafe.imports_passed_through():
    from domain import policies
    from domain.audit import AuditInput, AuditReport
    from domain.lookup import LookupAnswer, LookupInput
    from domain.sweep import SweepInput, SweepReport
    from workflows.lookup import LookupWorkflow
    from workflows.maintenance import AuditWorkflow, SweepWorkflow


@workflow.defn(name=policies.AUDIT_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedAudit(AuditWorkflow):
    """The audit, for a versioned worker."""

    @workflow.run
    async def run(self, audit: AuditInput) -> AuditReport:
        """Audit once."""
        return await super().run(audit)


@workflow.defn(name=policies.SWEEP_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedSweep(SweepWorkflow):
    """The sweep, for a versioned worker."""

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        """Sweep once through all unfinished orders, the oldest first."""
        return await super().run(sweep)


@workflow.defn(name=policies.LOOKUP_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedLookup(LookupWorkflow):
    """The lookup, for a versioned worker."""

    @workflow.run
    async def run(self, asked: LookupInput) -> LookupAnswer:
        """Look up once."""
        return await super().run(asked)
