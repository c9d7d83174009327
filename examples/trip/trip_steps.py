from dataclasses import dataclass

from httpx import AsyncClient, ConnectError, ConnectTimeout, Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence import CallRejected, Key, Known, Provider, Refusal, SagaSteps, Seen, Settles, external, local


@dataclass(frozen=True)
class Trip:
    trip_id: str
    hotel: str
    flight: str


class HotelFull(Refusal): ...


class AirlineRefused(Refusal): ...


AIRLINE = Provider("airline", Settles.BY_REPEATING, reversal_is_idempotent=True)

TAKE_ROOM = text("UPDATE hotels SET free_rooms = free_rooms - 1 WHERE hotel = :hotel AND free_rooms > 0")
FREE_ROOM = text("UPDATE hotels SET free_rooms = free_rooms + 1 WHERE hotel = :hotel")
INVOICE = text("INSERT INTO invoices (trip_id, euros) VALUES (:trip_id, 300)")


class Steps(SagaSteps):
    def __init__(self, airline: AsyncClient) -> None:
        self._airline = airline

    @local("room")
    async def take_room(self, tx: AsyncConnection, trip: Trip) -> str:
        if (await tx.execute(TAKE_ROOM, {"hotel": trip.hotel})).rowcount == 0:
            raise HotelFull(f"no room is free in {trip.hotel}")
        return trip.hotel

    @take_room.undo
    async def free_room(self, tx: AsyncConnection, trip: Trip, hotel: str) -> None:
        await tx.execute(FREE_ROOM, {"hotel": hotel})

    @external("seat", AIRLINE)
    async def book_seat(self, key: Key, trip: Trip) -> int:
        seat = {"flight": trip.flight, "reference": trip.trip_id}
        try:
            answer = await self._airline.post("/seats", json=seat, headers={"Idempotency-Key": key})
        except (ConnectError, ConnectTimeout) as error:
            raise CallRejected(f"no connection to the airline: {error!r}") from error  # nothing was sent
        raise_what_it_means(answer)
        return int(answer.json()["id"])

    @book_seat.undo
    async def cancel_seat(self, key: Key, trip: Trip, seen: Seen[int]) -> None:
        if isinstance(seen, Known):
            raise_what_it_means(await self._airline.delete(f"/seats/{seen.result}"))

    @local.pivot("invoice")
    async def send_invoice(self, tx: AsyncConnection, trip: Trip) -> str:
        await tx.execute(INVOICE, {"trip_id": trip.trip_id})
        return f"invoice/{trip.trip_id}"


def raise_what_it_means(answer: Response) -> None:
    if answer.status_code == 422:
        raise AirlineRefused(answer.text)  # its final no: the saga unwinds
    if answer.status_code in {400, 401, 409, 429}:
        raise CallRejected(answer.text)  # no to this call alone: an earlier one may have acted
    answer.raise_for_status()  # anything else: it may have acted
