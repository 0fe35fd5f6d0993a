"""Whole processes, measured: wall time and the CPU time of the process and its children."""

import os
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


@contextmanager
def started(
    command: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile; asked to end, by its id, on leaving."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            cwd=cwd or ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL if that does not help in half a minute."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
