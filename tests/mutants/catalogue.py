"""Every mutant, by area."""

from tests.mutants import (
    audits,
    bulk,
    checkout,
    commands,
    events,
    failures,
    fence,
    lanes,
    maintenance,
    orders,
    restored,
    saga,
    schema,
    starting,
    steps,
)
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *fence.MUTANTS,
    *steps.MUTANTS,
    *orders.MUTANTS,
    *saga.MUTANTS,
    *checkout.MUTANTS,
    *lanes.MUTANTS,
    *bulk.MUTANTS,
    *schema.MUTANTS,
    *failures.MUTANTS,
    *maintenance.MUTANTS,
    *restored.MUTANTS,
    *audits.MUTANTS,
    *starting.MUTANTS,
    *events.MUTANTS,
    *commands.MUTANTS,
)
