"""How many requests a caller may make: a token bucket for each, in this process."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

_BURST_SECONDS = 2.0
_MOST_CALLERS = 10_000


class Rates:
    """Grants each caller so many requests per second, and two seconds' worth at once.

    Args:
        per_second: requests per second.
        clock: seconds; of the system by default.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, caller: str) -> int:
        """Take one request of a caller's; return 0, or after how many whole seconds there will be one again."""
        now = self._clock()
        left, since = self._buckets.pop(caller, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        is_granted = left >= 1
        self._buckets[caller] = (left - 1 if is_granted else left, now)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)  # the one that was idle for longest
        return 0 if is_granted else math.ceil((1 - left) / self._per_second)
