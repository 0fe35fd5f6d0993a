"""The owner file, beside a store's folder: who has the store open to write.

Ownership itself is RocksDB's lock. The file only tells others who holds it,
and is believed only where it can be true.
"""

import json
import logging
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def announce(store: Path) -> None:
    """Say that this process owns ``store``; call it with the lock held."""
    try:
        _file(store).write_text(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "started": _start_of(os.getpid()),
                    "host": socket.gethostname(),
                    "command": shlex.join(sys.orig_argv)[:500],
                    "since_ms": int(time.time() * 1000),
                }
            )
            + "\n",
            "utf-8",
        )
    except OSError as error:
        log.warning("cannot say in %s who owns the store: %s", _file(store), error)


def withdraw(store: Path) -> None:
    """Say so no longer; call it with the lock still held, or it is the next owner's word."""
    with suppress(OSError):
        _file(store).unlink()


def describe(store: Path) -> str:
    """Who holds the lock of ``store``, and what to do about it: a message for another."""
    try:
        owner = json.loads(_file(store).read_text("utf-8"))
        pid, command = int(owner["pid"]), owner["command"]
        since = time.localtime(owner["since_ms"] / 1000)
        # Another host's processes cannot be looked at from here.
        gone = owner["host"] == socket.gethostname() and owner["started"] != _start_of(pid)
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        gone = True
    if gone:
        who = f"another process has the store {store} open to write"
    else:
        name = "this very process" if pid == os.getpid() else f"process {pid}"
        date = time.strftime("%Y-%m-%d %H:%M:%S", since)
        who = f"{name} ({command}) has had the store {store} open to write since {date}"
    return f"{who}; wait for it to end, or stop it; look-ups and dumps work beside it"


def _file(store: Path) -> Path:
    return store.with_name(store.name + ".owner")


def _start_of(pid: int) -> str:
    """When a process began, to tell it from a later one with its number; "" if unknown."""
    try:
        # The command's name stands in parentheses and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return ""
