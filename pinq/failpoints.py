"""Named places where a crash test can make the process die or an error appear.

``PINQ_FAILPOINTS="after_put=kill@3,before_mark=kill"`` kills the process (as
``kill -9`` would) the third time it passes ``after_put``, or the first time it
passes ``before_mark``. ``=enospc`` raises ``OSError(ENOSPC)`` instead, and
``=stop`` sends the process SIGSTOP. Without the variable a failpoint is one
dictionary look-up.

The names are the steps of a batch: ``after_lease``, ``after_put``,
``before_finish``, ``after_finish``, ``before_publish``, ``after_publish``,
``before_mark``; and those of a move from one queue to another: ``move_after_freeze``,
``move_after_jobs``, ``move_after_leases``, ``move_after_events``, ``move_after_depart``.
"""

import errno
import os
import signal
import threading

_lock = threading.Lock()


def _parse(spec: str) -> dict[str, tuple[str, int]]:
    armed = {}
    for entry in filter(None, spec.split(",")):
        name, _, action = entry.partition("=")
        verb, _, nth = action.partition("@")
        armed[name] = (verb, int(nth or 1))
    return armed


_armed = _parse(os.environ.get("PINQ_FAILPOINTS", ""))


def failpoint(name: str) -> None:
    """Act as ``PINQ_FAILPOINTS`` says for ``name``; normally do nothing."""
    if name not in _armed:
        return
    with _lock:
        verb, remaining = _armed[name]
        _armed[name] = (verb, remaining - 1)
    if remaining != 1:
        return
    # To this thread: a signal to the process may reach another first, and this one runs on.
    if verb == "kill":
        signal.pthread_kill(threading.get_ident(), signal.SIGKILL)
    elif verb == "stop":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif verb == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
