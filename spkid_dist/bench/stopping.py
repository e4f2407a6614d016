"""Leave nothing behind when measuring is stopped: signals become exceptions, which remove what was made."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(SystemExit):
    """A signal has told this process to stop; its exit code is the signal's, as shells count it (128 + number)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In the block the first SIGTERM, SIGHUP or SIGINT raises `Told` (SIGINT: KeyboardInterrupt).

    Further ones are ignored, as the block is being left then. A signal that was ignored before, as SIGHUP by nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # Python has handlers nowhere else
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in handled:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Told(number)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
