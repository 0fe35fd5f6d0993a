"""Whole processes, measured: wall time and the CPU time of the process and its children."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
PINQ = str(Path(sys.executable).with_name("pinq"))
CORES = len(os.sched_getaffinity(0))


class Broken(RuntimeError):
    """A program that is measured did not do its work."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that ended. CPU times include children that it waited for."""

    stdout: str
    wall_seconds: float
    user_seconds: float
    system_seconds: float
    peak_bytes: int

    @property
    def cpu_seconds(self) -> float:
        return self.user_seconds + self.system_seconds


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would configure pinq, plus ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PINQ_")}
    # A module of benchmarks is found wherever the process runs.
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Ran:
    """Run a program to its end, from before its start to after its exit.

    Raises:
        Broken: it exited with another code than 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            cwd=cwd or ROOT,
            env=dict(env or environment()),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        if check and process.returncode != 0:
            told = err.read().decode(errors="replace")[-3000:]
            raise Broken(f"{' '.join(command)[:300]} exited with {process.returncode}:\n{told}")
    return Ran(stdout, wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)


class Background:
    """A program that runs meanwhile. ``cpu_seconds``, of it and its children, once it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self.code: int | None = None
        self.cpu_seconds = 0.0
        self._process = process
        self._log = log

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.code is None and not self._reap(os.WNOHANG)

    def resident_bytes(self) -> int:
        """The memory it has now; 0 while it exits."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def told(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not help in half a minute."""
        deadline = time.monotonic() + 30
        if self.running():
            os.kill(self.pid, signal.SIGTERM)
        while self.running():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self._reap(0)
            time.sleep(0.01)

    def _reap(self, flags: int) -> bool:
        pid, status, usage = os.wait4(self.pid, flags)
        if pid == 0:
            return False
        self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return True


@contextmanager
def started(
    command: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str]
) -> Iterator[Background]:
    """Start a program; it is asked to end, by its id, on leaving."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            cwd=cwd or ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    background = Background(process, log)
    try:
        yield background
    finally:
        background.end()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="pinq-bench-") as name:
        yield Path(name)


def warm(files: Sequence[Path]) -> None:
    """Read files, so that no round pays for the disk."""
    for file in files:
        with suppress(OSError):
            file.read_bytes()
