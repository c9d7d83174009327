"""The steps of docs/recipes.md."""

from dataclasses import dataclass
from datetime import timedelta

from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagafence import CallRejected, Keeps, Key, Known, Provider, Refusal, SagaSteps, Seen, Settles, external, local


@dataclass(frozen=True)
class Trip:
    trip_id: str
    hotels: tuple[str, ...]
    breakfast: bool = False  # added later, with a default


@dataclass(frozen=True)
class Night:
    trip_id: str
    hotel: str


class HotelFull(Refusal): ...


class TooLate(Refusal): ...


class Base(DeclarativeBase): ...


class Hotel(Base):
    __tablename__ = "hotels"
    hotel: Mapped[str] = mapped_column(primary_key=True)
    free_rooms: Mapped[int]


class Steps(SagaSteps):
    @local("room")
    async def take_room(self, tx: AsyncSession, night: Night) -> str:
        hotel = await tx.get(Hotel, night.hotel, with_for_update=True)
        if hotel is None or hotel.free_rooms == 0:
            raise HotelFull(f"no room is free in {night.hotel}")
        hotel.free_rooms -= 1
        return hotel.hotel

    @take_room.undo
    async def free_room(self, tx: AsyncSession, night: Night, hotel: str) -> None:
        (await tx.get_one(Hotel, hotel, with_for_update=True)).free_rooms += 1

    @local.pivot("confirmed", activity="confirm_trip")
    async def confirm(self, tx: AsyncSession, trip: Trip) -> str:
        return f"confirmed/{trip.trip_id}"


FAX = Provider("fax", Settles.BY_A_PERSON, late_by_at_most=timedelta(days=1))
REGISTRY = Provider("registry", Settles.BY_LOOKING_UP, late_by_at_most=timedelta(hours=1), reversal_is_idempotent=True)
BANK = Provider(
    "bank",
    Settles.BY_REPEATING,
    keeps=Keeps.FIRST_ANSWERS,
    keeps_keys_for=timedelta(hours=24),
    late_by_at_most=timedelta(minutes=10),
)


class Payment(SagaSteps):
    def __init__(self, bank: AsyncClient) -> None:
        self._bank = bank

    @external.pivot("payment", BANK)
    async def pay(self, key: Key, trip: Trip) -> int:
        answer = await self._bank.post("/payments", json={"trip": trip.trip_id}, headers={"Idempotency-Key": key})
        answer.raise_for_status()
        return int(answer.json()["id"])

    @external.forward("receipt", BANK)
    async def send_receipt(self, key: Key, trip: Trip) -> int:
        answer = await self._bank.post("/receipts", json={"trip": trip.trip_id}, headers={"Idempotency-Key": key})
        answer.raise_for_status()
        return int(answer.json()["id"])

    @local.forward("thanks")
    async def thank(self, tx: AsyncSession, trip: Trip) -> str:
        return f"thanks/{trip.trip_id}"


class Elsewhere(SagaSteps):
    def __init__(self, registry: AsyncClient) -> None:
        self._registry = registry

    @external("name", REGISTRY)
    async def register(self, key: Key, night: Night) -> int:
        answer = await self._registry.post("/names", json={"reference": key, "hotel": night.hotel})
        if answer.status_code == 409:
            after = answer.headers.get("Retry-After", "")  # seconds, or a date
            wait = timedelta(seconds=int(after)) if after.isdecimal() else None
            raise CallRejected("another request is worked on", next_retry_delay=wait)
        answer.raise_for_status()
        return int(answer.json()["id"])

    @register.lookup
    async def find(self, key: Key, night: Night) -> int | None:
        answer = await self._registry.get("/names", params={"reference": key})
        answer.raise_for_status()
        found = answer.json()
        return int(found[0]["id"]) if found else None

    @register.undo
    async def unregister(self, key: Key, night: Night, seen: Seen[int]) -> None:
        if isinstance(seen, Known):
            (await self._registry.delete(f"/names/{seen.result}")).raise_for_status()
