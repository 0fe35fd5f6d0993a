"""``pinq queues``: what an operator tells a queue, and that workers obey."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import PHOTOS, Pinq

FREE = {"paused": False, "draining": False, "rate": None, "in_flight": None}


@pytest.fixture
def photos(tmp_path: Path) -> int:
    (tmp_path / "photos").mkdir()
    some = sorted(PHOTOS.glob("*.jpg"))[:4]
    for photo in some:
        shutil.copy(photo, tmp_path / "photos")
    return len(some)


def test_a_paused_pipeline_is_not_worked_until_it_is_resumed(pinq: Pinq, photos: int) -> None:
    assert pinq("queues", "pause", "default").out == "default: paused\n"
    ended = pinq("run", "photos")
    assert ended.code == 3
    assert ended.err == (
        "Error: pipeline 'default' is paused; `pinq queues resume default` ends that\n"
    )
    assert pinq("enqueue", "photos").code == 0
    assert pinq("worker", "--until-empty").code == 0
    (shown,) = pinq("queues", "ls", "--json").records
    assert (shown["pending"], shown["paused"]) == (photos, True)
    (resumed,) = pinq("queues", "resume", "default", "--json").records
    assert resumed == {"pipeline": "default", **FREE}
    assert pinq("worker", "--until-empty").code == 0
    (shown,) = pinq("queues", "ls", "--json").records
    assert shown["succeeded"] == photos


def test_a_worker_obeys_a_resume_while_it_waits(
    pinq: Pinq, photos: int, tmp_path: Path, environment: dict[str, str], program: str
) -> None:
    assert pinq("enqueue", "photos").code == 0
    assert pinq("queues", "pause", "default").code == 0
    with subprocess.Popen(
        [program, "-v", "worker"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as worker:
        try:
            assert pinq("queues", "resume", "default").code == 0
            deadline = time.monotonic() + 60
            while pinq("queues", "ls", "--json").records[0]["succeeded"] < photos:
                assert time.monotonic() < deadline
        finally:
            worker.terminate()


def test_a_draining_pipeline_takes_no_more_and_finishes_what_it_has(
    pinq: Pinq, photos: int, tmp_path: Path
) -> None:
    assert pinq("enqueue", "photos").code == 0
    assert pinq("queues", "drain", "default").out == "default: draining\n"
    (tmp_path / "new.jpg").write_bytes(b"another")
    ended = pinq("enqueue", "new.jpg")
    assert ended.code == 3
    assert "queue 'default' is draining and takes no more jobs" in ended.err
    assert pinq("worker", "--until-empty").code == 0
    (shown,) = pinq("queues", "ls", "--json").records
    assert (shown["succeeded"], shown["pending"]) == (photos, 0)
    assert pinq("queues", "delete", "default").out == f"default deleted, with {photos} jobs\n"


def test_limits_are_set_one_by_one_and_lifted(pinq: Pinq) -> None:
    assert pinq("queues", "limit", "default", "--rate", "6/min").out == "default: 0.1/s\n"
    limited = pinq("queues", "limit", "default", "--in-flight", "3", "--json")
    assert limited.records == [{"pipeline": "default", **FREE, "rate": 0.1, "in_flight": 3}]
    assert pinq("queues", "pause", "default").out == "default: paused, 0.1/s, 3 at once\n"
    assert "paused, 0.1/s, 3 at once" in pinq("queues", "ls", COLUMNS="120").out
    assert pinq("queues", "limit", "default", "--rate", "none").code == 0
    assert pinq("queues", "resume", "default").out == "default: 3 at once\n"


def test_a_run_is_slowed_down_to_its_rate(pinq: Pinq, photos: int) -> None:
    assert pinq("queues", "limit", "default", "--rate", "2").code == 0
    (report,) = pinq("run", "photos", "--json").records
    assert report["succeeded"] == photos
    assert report["seconds"] >= (photos - 2) / 2  # a bucket of two, then two a second


@pytest.mark.parametrize(
    "words",
    [
        ["limit", "default"],
        ["limit", "default", "--rate", "0"],
        ["limit", "default", "--rate", "-1"],
        ["limit", "default", "--rate", "nan"],
        ["limit", "default", "--rate", "1/week"],
        ["limit", "default", "--in-flight", "1.5"],
        ["limit", "default", "--in-flight", "many"],
        ["pause", "unheard-of"],
        ["delete", "unheard-of"],
        ["create", "a b"],
        ["create", ""],
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(pinq: Pinq, words: list[str]) -> None:
    ended = pinq("queues", *words)
    assert ended.code == 2
    assert "Error: " in ended.err and "Traceback" not in ended.err
    (shown,) = pinq("queues", "ls", "--json").records
    assert {name: shown[name] for name in FREE} == FREE


def test_a_queue_is_created_and_deleted(pinq: Pinq, photos: int) -> None:
    assert pinq("queues", "create", "crawled").code == 0
    assert pinq("queues", "create", "crawled").code == 0
    names = [shown["pipeline"] for shown in pinq("queues", "ls", "--json").records]
    assert names == ["crawled", "default"]
    assert pinq("queues", "delete", "crawled").code == 0
    assert pinq("enqueue", "photos").code == 0
    refused = pinq("queues", "delete", "default")
    assert refused.code == 3
    assert "holds jobs that have not succeeded" in refused.err
    assert pinq("queues", "delete", "default", "--force").code == 0
    (shown,) = pinq("queues", "ls", "--json").records
    assert (shown["pipeline"], shown["pending"]) == ("default", 0)
