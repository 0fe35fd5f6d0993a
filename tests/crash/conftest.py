"""A home with work in it, processes that die on command, and the look afterwards."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pinq.config import load
from pinq.queue.model import Filter, State
from pinq.queue.urls import open_queue
from pinq.store.urls import open_store

JOBS = 200
SIGNALS = {"color", "pdq", "quality"}


class Home:
    """An embedded pinq in a folder, driven by its command line.

    Its leases are short, so that what a dead process held comes back soon; a test in which
    nothing dies asks for long ones, which a busy machine does not outlast.
    """

    def __init__(self, folder: Path, **worker: object) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.home = folder / "home"
        self.config = folder / "pinq.toml"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"batch_size": 16, "lease_seconds": 1.0, **worker}
        lines = [f"{key} = {value}" for key, value in settings.items()]
        self.config.write_text(
            'home = "home"\n[worker]\n'
            + "\n".join(lines)
            + "\n[pipelines.default]\nmax_attempts = 40\nbackoff_seconds = 0.05\n"
        )

    def make_images(self, count: int = JOBS, seed: int = 7) -> None:
        self.images.mkdir(exist_ok=True)
        dice = random.Random(seed)
        for n in range(count):
            noise = Image.frombytes("RGB", (16, 16), dice.randbytes(768))
            noise.resize((64, 64)).save(self.images / f"{n}.jpg")

    def start(self, *arguments: str, failpoints: str = "") -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pinq", "--config", str(self.config), *arguments],
            env={**os.environ, "PINQ_FAILPOINTS": failpoints},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pinq(self, *arguments: str, failpoints: str = "", timeout: float = 120) -> tuple[int, str]:
        """The exit code, and what was said on stderr."""
        process = self.start(*arguments, failpoints=failpoints)
        _, said = process.communicate(timeout=timeout)
        return process.returncode, said

    def dramatiq(self) -> "subprocess.Popen[str]":
        """The worker under dramatiq's own command line, as the Procfile has it."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dramatiq",
                "workers.inference",
                "--processes",
                "1",
                "--threads",
                "2",
            ],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PINQ_CONFIG": str(self.config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_progress(self, *, beyond: int = 0, timeout: float = 60) -> None:
        """Until more than ``beyond`` jobs have succeeded, by the queue's own wake-up."""
        queue = open_queue(load(self.config).queue)
        deadline = time.monotonic() + timeout
        try:
            while True:
                seen = queue.wait(0, 0)
                counts = queue.count("default")
                if counts.succeeded > beyond:
                    return
                assert time.monotonic() < deadline, counts
                queue.wait(seen, 1.0)
        finally:
            queue.close()

    def nothing_is_leased(self) -> None:
        queue = open_queue(load(self.config).queue)
        counts = queue.count("default")
        attempts = {job.attempts for job in queue.scan(Filter(states=[State.PENDING]))}
        queue.close()
        assert counts.leased == 0
        assert attempts <= {0}

    def look(self, *, deaths: int, jobs: int = JOBS) -> None:
        """All that a crash must not have cost."""
        settings = load(self.config)
        queue = open_queue(settings.queue)
        found = list(queue.scan())
        left = queue.unpublished(10)
        queue.close()
        assert len(found) == jobs
        assert Counter(job.state for job in found) == {State.SUCCEEDED: jobs}
        assert max(job.attempts for job in found) <= deaths + 1
        store = open_store(settings.store)
        stored = store.lookup("default", [job.key for job in found])
        store.close()
        assert all(set(one) == SIGNALS for one in stored)
        ids: dict[str, set[str]] = defaultdict(set)
        for segment in sorted((self.home / "events").glob("*.jsonl")):
            for line in segment.read_text().splitlines():
                event = json.loads(line)
                assert event["type"] == "pinq.signal.computed"
                assert set(event["data"]["signals"]) == SIGNALS
                ids[event["subject"]].add(event["id"])
        assert left == []
        assert ids.keys() == {job.key for job in found}
        assert all(len(of_job) == 1 for of_job in ids.values())
        database = sqlite3.connect(self.home / "queue.db")
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()


@pytest.fixture
def make_home(tmp_path: Path) -> Callable[..., Home]:
    def make(name: str = "one", **worker: object) -> Home:
        return Home(tmp_path / name, **worker)

    return make
