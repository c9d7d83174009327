"""Which orders this process has lately accepted."""

MOST = 20_000


class RecentOrders:
    """The latest so many orders by id, each with the fingerprint of its content.

    An order that was accepted need not be in the database yet, nor in a workflow of its own: another one of its id
    could be written first, or be accepted while Postgres is away. Of what another process has accepted nothing is known
    here; docs/api.md says what comes of that.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[str, str] = {}

    def of(self, order_id: str) -> str | None:
        """Return the fingerprint of the order with this id; None where none is known."""
        return self._fingerprints.get(order_id)

    def add(self, order_id: str, fingerprint: str) -> None:
        """Add an order, for the oldest where there are too many."""
        self._fingerprints[order_id] = fingerprint
        if len(self._fingerprints) > MOST:
            del self._fingerprints[next(iter(self._fingerprints))]
