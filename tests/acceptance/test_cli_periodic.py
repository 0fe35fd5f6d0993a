"""Periodic jobs and retention, as whoever runs workers has them."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pinq.queue.model import NewJob, Succeeded
from pinq.queue.urls import open_queue
from tests.acceptance.conftest import PHOTOS, Pinq

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000
PIPELINE = "default"
SETTINGS = """
[pipelines.default]
signals = ["color"]

[periodic.cam]
cron = "* * * * *"
uri = "cam.jpg"

[periodic.yearly]
cron = "0 0 1 1 *"
timezone = "Europe/Berlin"
actor = "report"
queue = "reports"
args = ["all"]
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Path:
    (tmp_path / "pinq.toml").write_text(SETTINGS)
    shutil.copy(min(PHOTOS.glob("*.jpg")), tmp_path / "cam.jpg")
    return tmp_path


def test_what_falls_due_is_listed_the_next_first(pinq: Pinq, home: Path) -> None:
    cam, yearly = pinq("periodic", "ls", "--json").records
    assert (
        cam.items()
        >= {
            "name": "cam",
            "cron": "* * * * *",
            "pipeline": PIPELINE,
            "uri": f"file://{home}/cam.jpg",
        }.items()
    )
    assert yearly.items() >= {"actor": "report", "queue": "reports", "args": ["all"]}.items()
    assert yearly["next"].endswith("-12-31T23:00:00.000Z")
    shown = pinq("periodic", "ls").out.splitlines()
    assert [line.split()[0] for line in shown] == ["name", "cam", "yearly"]
    assert not (home / ".pinq").exists(), "to look makes no database"


def test_without_entries_there_is_nothing_to_list(pinq: Pinq, home: Path) -> None:
    (home / "pinq.toml").unlink()
    ended = pinq("periodic", "ls")
    assert (ended.code, ended.out, ended.err) == (0, "", "no periodic jobs\n")
    assert pinq("periodic", "ls", "--json").out == ""


def old_jobs(home: Path) -> Callable[[], int]:
    """Makes two that succeeded two days ago; returns what counts those that are left."""
    url = f"sqlite:///{home}/.pinq/queue.db"
    (home / ".pinq").mkdir()
    past = time.time_ns() // 1_000_000 - 2 * DAY_MS
    with closing(open_queue(url, clock=lambda: past)) as queue:
        queue.enqueue(PIPELINE, [NewJob("old1"), NewJob("old2")])
        lease = queue.lease(PIPELINE, 2, 60, "w")
        assert lease
        queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])

    def left() -> int:
        with closing(open_queue(url)) as queue:
            return len(queue.lookup(PIPELINE, ["old1", "old2"]))

    assert left() == 2
    return left


@pytest.mark.parametrize("dramatiq", [False, True], ids=["pinq", "dramatiq"])
def test_a_worker_enqueues_what_falls_due_and_deletes_what_is_old(
    pinq: Pinq, home: Path, environment: dict[str, str], program: str, dramatiq: bool
) -> None:
    left = old_jobs(home)
    command = [program, "worker"]
    if dramatiq:
        command = [sys.executable, "-m", "dramatiq", "workers.inference", "--processes", "1"]
        environment["PINQ_CONFIG"] = str(home / "pinq.toml")
    with subprocess.Popen(
        command,
        cwd=ROOT if dramatiq else home,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as worker:
        try:
            deadline = time.monotonic() + 60
            # The minute that has just passed is made up for: no need to wait for the next.
            while left() or not pinq("jobs", "ls", "--state", "succeeded", "--json").records:
                assert time.monotonic() < deadline
        finally:
            worker.terminate()
    assert worker.returncode == 0
    job = pinq("jobs", "ls", "--state", "succeeded", "--json").records[0]
    assert job["signature"].startswith("cam-20")
    assert pinq("get", job["signature"], "--json").code == 0
