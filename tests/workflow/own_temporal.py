"""A Temporal server of a module's own, for what one that everybody shares cannot be told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from domain.policies import SEARCH_ATTRIBUTES
from sagafence.devservers.ports import free_port
from sagafence.devservers.temporal import TemporalServer


@contextmanager
def own_temporal(folder: Path, **dynamic_config: Any) -> Iterator[TemporalServer]:
    """Run a server with our search attributes and these settings of the server's."""
    server = TemporalServer(
        port=free_port(),
        ui_port=None,
        log=folder / "temporal.log",
        search_attributes=SEARCH_ATTRIBUTES,
        dynamic_config=dynamic_config,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
