"""Every mutant, by area."""

from tests.mutants import (
    audits,
    bulk,
    checkout,
    compose,
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
    wiring,
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
    *compose.MUTANTS,
    *wiring.MUTANTS,
)
