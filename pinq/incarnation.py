"""Names for processes: unlike any other's, and of which one can tell that they died.

A name is ``<boot and pid namespace>:<pid>:<start time>:<random>``. On the same
machine and in the same pid namespace, Linux tells whether that very process
still lives; about any other name nothing is known, and it is taken to live.
"""

import hashlib
import os
import secrets
from pathlib import Path


def incarnation() -> str:
    """A name for this process that no other has or will have."""
    return f"{_where()}:{os.getpid()}:{_started(os.getpid())}:{secrets.token_hex(4)}"


def has_died(name: str) -> bool:
    """Whether the process of that name is known to have ended."""
    try:
        where, pid, started, _ = name.split(":")
        return where == _where() != "" and str(_started(int(pid))) != started
    except ValueError:
        return False  # not a name of ours


def _where() -> str:
    """This boot of this machine, and this pid namespace; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return hashlib.blake2b(f"{boot}{namespace}".encode(), digest_size=6).hexdigest()


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if there is none, or a zombie."""
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
