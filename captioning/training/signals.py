"""A signal that asks a training to stop, kept until the training is between two batches."""

import signal
import threading
from typing import Any

from captioning.processes import STOPPING


class StopRequest:
    """Remembers the first of the signals that ask to stop; a second one ends the process at once.

    Attributes:
        signal: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def listen(self) -> None:
        """Handle the signals from now on; only the main thread can."""
        self.signal = None
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or in the background
                    signal.signal(number, self._handle)

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal has ended."""
        return 128 + (self.signal or signal.SIGTERM)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
