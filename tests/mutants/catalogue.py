"""Every mutant, by area."""

from tests.mutants import (
    audits,
    behind,
    bulk,
    checkout,
    events,
    failures,
    fence,
    lanes,
    maintenance,
    orders,
    requests,
    restored,
    saga,
    schema,
    starting,
    steps,
    taken_back,
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
    *behind.MUTANTS,
    *failures.MUTANTS,
    *maintenance.MUTANTS,
    *restored.MUTANTS,
    *audits.MUTANTS,
    *starting.MUTANTS,
    *requests.MUTANTS,
    *events.MUTANTS,
    *taken_back.MUTANTS,
)
