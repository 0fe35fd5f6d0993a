"""``pinq run`` and what follows it, on real photographs."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pinq.ingest.items import Signed
from pinq.ingest.signing import sign
from tests.acceptance.conftest import PHOTOS, Pinq


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Photographs under ``photos/``, and their folder's other company."""
    shutil.copytree(PHOTOS, tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return sorted(each for each in (tmp_path / "photos").iterdir() if each.suffix != ".txt")


def signature_of(path: Path) -> str:
    signed = sign(path)
    assert isinstance(signed, Signed)
    return signed.signature


def test_a_folder_becomes_signals_and_again_nothing_is_done_twice(
    pinq: Pinq, photos: list[Path], tmp_path: Path
) -> None:
    ended = pinq("run", "photos", "--json")
    (report,) = ended.records
    assert ended.code == 0
    assert report.keys() == {
        "enqueued", "duplicate", "succeeded", "dead",
        "dead_by_class", "seconds", "images_per_second",
    }  # fmt: skip
    assert (report["enqueued"], report["succeeded"], report["dead"]) == (
        len(photos),
        len(photos),
        0,
    )
    assert report["images_per_second"] > 0

    for photo in photos:
        got = pinq("get", signature_of(photo), "--json")
        (record,) = got.records
        assert got.code == 0
        assert record["state"] == "present"
        assert record["signals"].keys() == {"color", "pdq", "quality"}
        value = record["signals"]["pdq"]["value"]
        assert re.fullmatch("[0-9a-f]{64}", value["hash"])
        assert 0 <= value["quality"] <= 100
        assert record["signals"]["pdq"]["computed_at"].endswith("Z")

    (again,) = pinq("run", "photos", "--json").records
    assert (again["enqueued"], again["duplicate"]) == (0, len(photos))
    assert (again["succeeded"], again["images_per_second"]) == (len(photos), 0)

    events = [
        json.loads(line)
        for segment in (tmp_path / ".pinq" / "events").glob("*.jsonl")
        for line in segment.read_text().splitlines()
    ]
    assert sorted(event["subject"] for event in events) == sorted(map(signature_of, photos))


def test_the_dead_are_told_with_their_reason_and_stay_so_until_retried(
    pinq: Pinq, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "photos" / os.fsdecode(b"[red]\n\xff.jpg")
    bad.write_bytes(b"no image at all")
    ended = pinq("run", "photos", "gone.jpg")
    assert ended.code == 1
    assert f"{len(photos)} succeeded, 1 dead" in ended.out
    assert r"photos/[red]\n\udcff.jpg: " in ended.out
    assert "gone.jpg: no such file or folder" in ended.err

    (job,) = pinq("jobs", "ls", "--state", "dead", "--json").records
    assert job["errors"][0].keys() == {"class", "message", "at"}
    assert job["errors"][0]["class"] == "undecodable"
    (record,) = pinq("get", job["signature"], "--json").records
    assert (record["state"], record["errors"]) == ("failed", job["errors"])
    assert "undecodable" in pinq("get", job["signature"]).out

    still = pinq("run", "photos", "--json")
    assert (still.code, still.records[0]["dead"]) == (1, 1)
    assert still.records[0]["dead_by_class"] == {"undecodable": 1}
    assert r"[red]\n\udcff.jpg: " in still.err
    (unmoved,) = pinq("jobs", "ls", "--state", "dead", "--json").records
    assert unmoved == job
    pinq("run", "photos", "--retry-dead")
    (retried,) = pinq("jobs", "ls", "--state", "dead", "--json").records
    assert retried["errors"] != job["errors"]


def test_the_parts_can_be_run_one_by_one(pinq: Pinq, photos: list[Path], tmp_path: Path) -> None:
    added = pinq("enqueue", str(photos[0]), "--json").records[0]
    assert pinq("worker", "--until-empty").code == 0
    assert not list(tmp_path.glob(".pinq/events/*.jsonl"))
    assert pinq("relay", "--until-empty").code == 0
    assert len(list(tmp_path.glob(".pinq/events/*.jsonl"))) == 1
    (record,) = pinq("get", added["signature"], "--signal", "pdq", "--json").records
    assert (record["state"], list(record["signals"])) == ("present", ["pdq"])
    assert pinq("get", added["signature"], "--galaxy", "other").code == 1


def test_an_interrupted_run_ends_cleanly_and_goes_on_where_it_was(
    pinq: Pinq,
    photos: list[Path],
    tmp_path: Path,
    environment: dict[str, str],
    program: str,
) -> None:
    for copy in range(40):
        for photo in photos[:5]:
            data = photo.read_bytes() + b"%d" % copy
            (tmp_path / "photos" / f"{photo.stem}-{copy}{photo.suffix}").write_bytes(data)
    found = len(photos) + 200
    # Small batches: what is in hand when the signal comes is finished, and must not be all.
    (tmp_path / "pinq.toml").write_text("[worker]\nbatch_size = 8\n")
    with subprocess.Popen(
        [program, "run", "photos", "--json"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while not pinq("jobs", "ls", "--state", "succeeded", "--json", "--limit", "1").out:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"Stopping" in err
    first = json.loads(out)
    assert first["dead"] == 0
    for job in pinq("jobs", "ls", "--json").records:
        assert job["state"] in ("pending", "succeeded")
        assert job["errors"] == []
    ended = pinq("run", "photos", "--json")
    (report,) = ended.records
    assert (ended.code, report["succeeded"], report["dead"]) == (0, found, 0)
    assert {job["attempts"] for job in pinq("jobs", "ls", "--json").records} == {1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_is_stopped_politely(
    pinq: Pinq, tmp_path: Path, environment: dict[str, str], program: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [program, "-v", "worker"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".pinq" / "queue.db").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in err


def test_two_at_once_are_told_apart(
    pinq: Pinq, photos: list[Path], tmp_path: Path, environment: dict[str, str], program: str
) -> None:
    with subprocess.Popen(
        [program, "worker"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as worker:
        while not (tmp_path / ".pinq" / "queue.db").exists():
            assert worker.poll() is None
            time.sleep(0.01)
        ended = pinq("run", "photos")
        assert ended.code == 3
        assert ended.err.startswith("Error: ")
        assert str(worker.pid) in ended.err
        assert "Traceback" not in ended.err
        added = pinq("enqueue", str(photos[0]), "--json").records[0]
        deadline = time.monotonic() + 60
        while pinq("get", added["signature"], "--json").records[0]["state"] != "present":
            assert time.monotonic() < deadline
        worker.terminate()
    assert worker.returncode == 0


def test_on_a_terminal_there_is_a_bar(
    photos: list[Path], tmp_path: Path, environment: dict[str, str], program: str
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [program, "run", "photos"],
        cwd=tmp_path,
        env=environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                chunk = os.read(ours, 4096)
            except OSError:
                break
            shown += chunk
        assert process.stdout is not None
        assert f"{len(photos)} succeeded".encode() in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"images/s" in shown
    assert f"{len(photos)}/{len(photos)}".encode() in shown
