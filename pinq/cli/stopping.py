"""A polite end: the first SIGINT, SIGTERM or SIGHUP asks to stop, the second one insists."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that a signal sets while the block runs.

    A thread watches a pipe that the interpreter's own handler writes to: to set
    an event inside a Python handler could deadlock with the code it interrupts,
    and would have to wait for the main thread to leave native code.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while received := os.read(reading, 1):
            if received[0] not in _SIGNALS:
                continue
            if stop.is_set():
                sys.stderr.write("\nStopped at once; leases that were held expire by themselves.\n")
                sys.stderr.flush()
                os._exit(130)
            stop.set()
            sys.stderr.write("\nStopping: what is in hand is finished or given back…\n")
            sys.stderr.flush()

    before = {}
    for number in _SIGNALS:
        # What is ignored (under nohup, say) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda *_: None)
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="pinq-signals", daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)
