"""The words of this saga, and its two tables (schema.sql)."""

from dataclasses import dataclass

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagafence import Refusal


@dataclass(frozen=True)
class Workspace:
    workspace_id: str
    subdomain: str
    plan: str


@dataclass(frozen=True)
class Opened:
    subdomain: str
    tenant_id: int
    invoice_id: int
    mail_id: int


class SubdomainTaken(Refusal): ...


class NoSeatLeft(Refusal): ...


class ProviderRefused(Refusal): ...


class Base(DeclarativeBase): ...


class Subdomain(Base):
    __tablename__ = "subdomains"
    name: Mapped[str] = mapped_column(primary_key=True)
    workspace_id: Mapped[str]


class SeatPool(Base):
    __tablename__ = "seat_pools"
    plan: Mapped[str] = mapped_column(primary_key=True)
    free: Mapped[int]
