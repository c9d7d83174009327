"""worker.py with an affliction of its process, which a signal brings on. Run as a worker process by the tests.

    python -m tests.faults.odd_workers wrong-clock    # SIGUSR1: the clock is an hour fast; SIGUSR2: an hour slow
    python -m tests.faults.odd_workers deaf-loop      # SIGUSR1: the event loop does nothing for 5 s

The wrong clock is the one that Python code sees: `time.time`, `time.time_ns` and `datetime.now` and `utcnow`, for
our code, SQLAlchemy, asyncpg and the Python half of the SDK. The SDK's core is Rust and reads the system's clock
itself; its timeouts run on durations that the server sends. Monotonic clocks go on: those of a real machine do, too.
"""

import asyncio
import datetime as dt
import signal
import sys
import time
from typing import Any

HOUR_SECONDS = 3600
DEAF_SECONDS = 5.0

_offset = 0.0
_time = time.time
_datetime = dt.datetime


class _WrongMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class _WrongDatetime(_datetime, metaclass=_WrongMeta):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return _datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)


def _wrong_clock() -> dict[signal.Signals, Any]:
    def set_clock(seconds: float) -> None:
        global _offset  # noqa: PLW0603 - a clock is the process's one
        _offset = seconds
        _tell(f"clock wrong by {time.time() - _time():+.0f} s, {_wrong_by():+.0f} s as a date")

    time.time = lambda: _time() + _offset
    time.time_ns = lambda: int((_time() + _offset) * 1_000_000_000)
    dt.datetime = _WrongDatetime  # type: ignore[misc]
    return {
        signal.SIGUSR1: lambda: set_clock(HOUR_SECONDS),
        signal.SIGUSR2: lambda: set_clock(-HOUR_SECONDS),
    }


def _wrong_by() -> float:
    return float((dt.datetime.now(dt.UTC) - _datetime.now(dt.UTC)).total_seconds())


def _deaf_loop() -> dict[signal.Signals, Any]:
    def stop_hearing() -> None:
        _tell("event loop blocked")
        time.sleep(DEAF_SECONDS)
        _tell("event loop goes on")

    return {signal.SIGUSR1: stop_hearing}


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    signals = {"wrong-clock": _wrong_clock, "deaf-loop": _deaf_loop}[sys.argv.pop(1)]()
    # Only now, so that everything it imports sees the clock that was put in place.
    import worker  # noqa: PLC0415

    sound_run = worker.run

    async def run(settings: Any) -> None:
        for number, act in signals.items():
            asyncio.get_running_loop().add_signal_handler(number, act)
        await sound_run(settings)

    worker.run = run
    return worker.main()


if __name__ == "__main__":
    status = main()
    from adapters.process_exit import leave

    leave(status)
