"""Ending a run in good order: when time is up, or when the process is asked to end."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Why a run should end after the current step: time is up, or SIGINT or SIGTERM came. A second SIGINT interrupts at
    once."""

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.reason: str | None = None

    def listen(self) -> None:
        """Take the signals, until somebody restores what was there before; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals within a block."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)

    def look_at_clock(self, minutes: float) -> None:
        """Note where the run's minutes are over."""
        if self.max_minutes is not None and minutes >= self.max_minutes and self.reason is None:
            self.reason = f"max_minutes ({self.max_minutes}) reached"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        log.warning("%s: stopping after this step; the weights so far are averaged and exported", self.reason)
