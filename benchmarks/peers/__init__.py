"""Other people's queues, put to the same work as pinq's, on the same servers.

Each module here named after a peer is a program of its own, run by a Python that has the peers
and not pinq: an environment that :func:`python` makes once, outside the tree. So nothing may be
imported here but the standard library and what needs no more than that. ``pinq`` is pinq itself
under the same rules, run by pinq's own Python.

What is compared is not quite the same promise: see each module's docstring.
"""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import PYTHON, environment, run, started

if TYPE_CHECKING:
    from tests.servers import Kind, Server

_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_PEERS_AFTER_IDLING = 4
BACKENDS = {None: "SQLite", "postgres": "PostgreSQL", "mariadb": "MariaDB", "redis": "Redis"}


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue that takes part.

    Attributes:
        module: its program, and its name in figures together with the backend.
        kind: the server that it needs; none for SQLite.
        most_jobs: so many take it a few seconds; a round gives it no more.
        waits: whether it has a worker that waits for jobs, and so a latency.
    """

    name: str
    module: str
    kind: "Kind | None"
    most_jobs: int
    waits: bool = True

    @property
    def backend(self) -> str:
        return BACKENDS[self.kind]

    @property
    def is_pinq(self) -> bool:
        return self.module == "pinq"

    @property
    def slug(self) -> str:
        """Its name in figures."""
        return f"pinq_{self.backend.lower()}" if self.is_pinq else self.module


PEERS = (
    Peer("PgQueuer", "pgqueuer", "postgres", 51_200),
    Peer("procrastinate", "procrastinate", "postgres", 2_000),
    Peer("dramatiq", "dramatiq", "redis", 5_000),
    Peer("RQ", "rq", "redis", 1_500),
    Peer("huey", "huey", None, 5_000),
    Peer("litequeue", "litequeue", None, 10_000, waits=False),
)
PINQ = (
    Peer("pinq", "pinq", None, 51_200),
    Peer("pinq", "pinq", "postgres", 51_200),
    Peer("pinq", "pinq", "mariadb", 25_600),
    Peer("pinq", "pinq", "redis", 51_200),
)


@dataclass(frozen=True, slots=True)
class PeerResult:
    """One round of one peer: so many jobs enqueued, then run and acknowledged."""

    peer: Peer
    version: str
    jobs: int
    enqueue_seconds: float
    work_seconds: float

    @property
    def seconds(self) -> float:
        return self.enqueue_seconds + self.work_seconds

    @property
    def jobs_per_second(self) -> float:
        return self.jobs / self.seconds


@dataclass(frozen=True, slots=True)
class PeerLatency:
    """Milliseconds from the call that enqueues, in one process, to the job's start in another."""

    peer: Peer
    idle: Sequence[float]
    after_idle: Sequence[float]


def run_peers(
    servers: "Mapping[Kind, Server]",
    jobs: int,
    rounds: int,
    *,
    peers: Sequence[Peer] = PINQ + PEERS,
    say: Callable[[str], None] = print,
) -> list[PeerResult]:
    """All peers whose server is there, in turn, so many rounds; one result each time.

    Those that share a server come one after the other, in whatever mood the machine is then.
    """
    peers = sorted(peers, key=lambda peer: peer.backend)
    results = []
    for number in range(rounds):
        for peer in _taking_part(peers, servers):
            with _queue(peer, servers) as url:
                told = _tell(peer, "throughput", url, min(jobs, peer.most_jobs))
            result = PeerResult(
                peer,
                told["version"],
                told["jobs"],
                told["enqueue_seconds"],
                told["work_seconds"],
            )
            results.append(result)
            say(
                f"{peer.name} {result.version} on {peer.backend}, round {number + 1}: "
                f"{result.jobs_per_second:,.0f} jobs/s"
            )
    return results


def run_peers_for_latency(
    servers: "Mapping[Kind, Server]",
    count: int,
    idle_count: int,
    idle_seconds: float,
    *,
    peers: Sequence[Peer] = PINQ + PEERS,
    say: Callable[[str], None] = print,
) -> list[PeerLatency]:
    """One idle worker a peer and another process that enqueues, one job at a time.

    Each comes at a random moment, once the one before it has begun; the last ``idle_count`` of
    them after ``idle_seconds`` in which nothing happened; fewer where no goal depends on them.
    """
    results = []
    for peer in _taking_part(peers, servers):
        if not peer.waits:
            continue
        with _queue(peer, servers) as url, tempfile.TemporaryDirectory() as folder:
            starts = Path(folder, "starts")
            env = environment(PEER_STARTS=str(starts))
            worker = _command(peer, "worker", url)
            with started(worker, log=Path(folder, "log"), env=env):
                after = idle_count if peer.is_pinq else min(idle_count, _PEERS_AFTER_IDLING)
                sent = _tell(peer, "send", url, count, after, idle_seconds, env=env)
            lines = (line.split() for line in starts.read_text().splitlines())
            began = {key: int(at) for key, at in lines}
        idle, after_idle = (
            [(began[each["key"]] - each["called"]) / 1e6 for each in sent[series]]
            for series in ("idle", "after_idle")
        )
        results.append(PeerLatency(peer, idle, after_idle))
        say(f"{peer.name} on {peer.backend}: {len(idle)} and {len(after_idle)} jobs begun")
    return results


def python() -> str:
    """The Python that has the peers; made on first use, which takes a minute and needs a network.

    In ``$XDG_CACHE_HOME/pinq-bench/peers``, by default in ``~/.cache``.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pinq-bench")
    folder = cache / "peers"
    stamp = folder / "requirements.txt"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "peers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = _REQUIREMENTS.read_text()
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"installing the peers in {folder}, once", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            run([PYTHON, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            run([*pip, "--disable-pip-version-check", "-r", str(_REQUIREMENTS)])
            # Last: without it, the folder is only half of what it should be.
            stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def _taking_part(peers: Sequence[Peer], servers: "Mapping[Kind, Server]") -> list[Peer]:
    return [peer for peer in peers if peer.kind is None or peer.kind in servers]


@contextmanager
def _queue(peer: Peer, servers: "Mapping[Kind, Server]") -> Iterator[str]:
    """The URL of an empty place, with the peer's tables in it."""
    with tempfile.TemporaryDirectory(prefix="pinq-bench-") as folder:
        url = f"sqlite:///{folder}/queue.db"
        if peer.kind is not None:
            # Late: it imports what the peers' own environment has not.
            from tests.servers import fresh_database

            url = fresh_database(servers[peer.kind])
        run(_command(peer, "set-up", url))
        yield url


def _tell(peer: Peer, mode: str, *words: object, env: Mapping[str, str] | None = None) -> Any:
    return json.loads(run(_command(peer, mode, *words), env=env).stdout)


def _command(peer: Peer, mode: str, *words: object) -> list[str]:
    program = PYTHON if peer.is_pinq else python()
    return [program, "-m", f"{__name__}.{peer.module}", mode, *map(str, words)]
