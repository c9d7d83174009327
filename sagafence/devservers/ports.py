"""Free loopback ports."""

import fcntl
import os
import secrets
import socket
import tempfile
from functools import cache
from pathlib import Path

from sagafence.devservers.process import ServerFailed

# Below every system's ephemeral range: a port from inside it, as bind(0) gives, may be taken by
# an outgoing connection between this choice and the server's own bind.
_RANGE = range(20_000, 30_000)
# One byte per port, locked by the process that has it until that ends: two that choose at once, seconds before their
# servers listen, never choose the same.
_CLAIMS = Path(tempfile.gettempdir()) / f"sagafence-ports-{os.getuid()}"
_taken: set[int] = set()


def free_port() -> int:
    """Return a free loopback TCP port, which no other process gets from here while this one lives."""
    for _ in range(200):
        port = secrets.choice(_RANGE)
        if _claim(port) and port_is_free(port):
            return port
    raise OSError(f"no free loopback port found between {_RANGE.start} and {_RANGE.stop - 1}")


def _claim(port: int) -> bool:
    if port in _taken:
        return False
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _taken.add(port)
    return True


@cache
def _claims() -> int:
    # Never closed: closing any descriptor of the file releases every lock that this process has on it.
    return os.open(_CLAIMS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    # A bind alone is not enough: BSD systems let 127.0.0.1 be bound beside a listener on 0.0.0.0.
    if port_answers(port):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections in TIME_WAIT do not count as a user of the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def port_answers(port: int) -> bool:
    """Whether a server accepts connections on 127.0.0.1:`port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def require_free(server: str, port: int) -> None:
    """Check that `server` may have `port`.

    Raises:
        ServerFailed: another process has it; the message says how to find it.
    """
    if not port_is_free(port):
        raise ServerFailed.of(
            server,
            f"port {port} on 127.0.0.1 is taken",
            advice=f"See who has it with `lsof -i :{port}` (or `ss -ltnp`) and stop it; `make demo` takes free ports",
        )
