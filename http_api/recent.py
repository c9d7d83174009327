"""Which orders this process has lately given a workflow of their own."""

MOST = 20_000


class RecentOrders:
    """The ids of the latest so many orders that were accepted and need not be in the database yet.

    In a batch, another order of such an id could be written first, and the one that was accepted would not be bought.
    With a workflow of its own Temporal compares the two. Of what another process has accepted nothing is known here:
    docs/api.md says what comes of that.
    """

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._ids

    def add(self, order_id: str) -> None:
        """Add an order, for the oldest where there are too many."""
        self._ids[order_id] = None
        if len(self._ids) > MOST:
            del self._ids[next(iter(self._ids))]
