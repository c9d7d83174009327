"""Why a request failed: one root, each failure with its exit status, each message fit to be shown as it is."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a command's exit status says."""

    COMPLETED = 0
    UNREACHABLE = 1
    USAGE = 2
    REFUSED = 3
    STUCK = 4
    VIOLATED = 5
    INTERRUPTED = 130


class ClientError(Exception):
    """A request that failed; by default because Temporal or a worker cannot be reached."""

    exit_status = ExitStatus.UNREACHABLE


class NoSuchOrder(ClientError):
    """Temporal has no saga of this order."""

    exit_status = ExitStatus.USAGE


class OrderIdConflict(ClientError):
    """The order id already belongs to an order with another customer or other lines."""

    exit_status = ExitStatus.USAGE


class Refused(ClientError):
    """The saga refused the request. The message is its reason."""

    exit_status = ExitStatus.REFUSED


class NoWorker(ClientError):
    """No worker polls the task queue, or it is too slow."""


class NotKnownYet(NoWorker):
    """No worker has accepted the request yet. It may still happen; a repeat returns the result."""


class NoAnswer(NoWorker):
    """The database cannot be asked now: no worker answers, or the database does not."""


class Full(ClientError):
    """Too many orders wait to be put into batches. Nothing was done."""
