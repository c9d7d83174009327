"""What every fault of a module did: a fault that did not strike proves nothing, and is a failure."""

from collections import Counter

import pytest


class Evidence:
    """The counts of one module's tests, by test."""

    def __init__(self) -> None:
        self._by_test: dict[str, Counter[str]] = {}

    def of(self, request: pytest.FixtureRequest) -> Counter[str]:
        """Begin a test's own counts: each observation under a name."""
        return self._by_test.setdefault(request.node.nodeid, Counter())

    def require_all(self, request: pytest.FixtureRequest) -> None:
        """Check, as a module's last test, that whatever was chosen of it ran and struck."""
        chosen = {item.nodeid for item in request.session.items if item.path == request.path}
        ran = set(self._by_test)
        struck = {test for test, counts in self._by_test.items() if counts and all(counts.values())}
        assert chosen - {request.node.nodeid} == ran == struck, self._by_test
