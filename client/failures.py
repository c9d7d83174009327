"""Why a request to a checkout came to nothing, in words that can be shown as they are."""


class NoSuchOrder(Exception):
    """Temporal knows no saga of this order."""


class OtherContent(Exception):
    """The order id already belongs to an order with another customer or other lines."""


class Refused(Exception):
    """The saga refused the request. The message is its reason."""


class NoWorker(Exception):
    """Nobody works on the task queue, or too slowly."""


class NotKnownYet(NoWorker):
    """Nobody has taken a request so far. It may still happen; whoever repeats it learns what came of it."""


class StillRunning(NoWorker):
    """It has not ended within the time that somebody wanted to wait. It goes on."""


class LoadFailed(NoWorker):
    """A load cannot go on."""


class NoAnswer(NoWorker):
    """What only the database knows cannot be asked now: no worker answers, or the database does not."""
