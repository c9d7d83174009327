"""The story of the tests: room, then seats side by side, the ticket as the pivot, a greeting after it."""

from datetime import timedelta

from temporalio import workflow

from sagafence import RetryBackoff, Saga, SagaWorkflow

with workflow.unsafe.imports_passed_through():
    from tests.sagafence.trip_steps import Booking, Trip, TripSteps


@workflow.defn
class BookTrip(SagaWorkflow[Trip, list[Booking]]):
    """Books everything or nothing."""

    backoff = RetryBackoff(timedelta(hours=1), timedelta(hours=1))

    async def story(self, saga: Saga, trip: Trip, /) -> list[Booking]:
        """Room, two seats together, ticket, greeting."""
        room = await saga.do(TripSteps.book_room, trip)
        seats = await saga.together(
            *(saga.do(TripSteps.book_seat, trip, instance=which) for which in ("there", "back"))
        )
        ticket = await saga.pivot(TripSteps.issue_ticket, trip)
        return [room, *seats, ticket, await saga.then(TripSteps.greet, trip)]


@workflow.defn
class IssueTicket(SagaWorkflow[Trip, Booking]):
    """Nothing but the pivot."""

    async def story(self, saga: Saga, trip: Trip, /) -> Booking:
        """The ticket alone."""
        return await saga.pivot(TripSteps.issue_ticket, trip)


@workflow.defn
class BookTogether(SagaWorkflow[Trip, list[Booking]]):
    """Steps side by side within others that are."""

    async def story(self, saga: Saga, trip: Trip, /) -> list[Booking]:
        """The room beside the seats, which are booked side by side."""
        seats = saga.together(*(saga.do(TripSteps.book_seat, trip, instance=which) for which in ("there", "back")))
        room, both = await saga.together(saga.do(TripSteps.book_room, trip), seats)
        return [room, *both]


@workflow.defn
class IssueBeside(SagaWorkflow[Trip, Booking]):
    """What must not be: a pivot beside another step, in one sequence or the other."""

    async def story(self, saga: Saga, trip: Trip, /) -> Booking:
        """The ticket beside the room."""
        room, ticket = saga.do(TripSteps.book_room, trip), saga.pivot(TripSteps.issue_ticket, trip)
        both = await saga.together(*((ticket, room) if trip.note == "pivot first" else (room, ticket)))
        return both[0]
