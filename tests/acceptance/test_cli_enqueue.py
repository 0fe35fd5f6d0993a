"""``pinq enqueue`` and the commands that look at jobs."""

import hashlib
import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.acceptance.conftest import Pinq


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    for name in ("a.jpg", "p/b.jpg", "p/q/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())


def test_each_item_is_a_line_with_its_outcome(pinq: Pinq, tmp_path: Path) -> None:
    ended = pinq("enqueue", "a.jpg", "p", "--json")
    assert ended.code == 0
    assert ended.records[0] == {
        "signature": hashlib.blake2b(b"a.jpg", digest_size=16).hexdigest(),
        "uri": f"file://{tmp_path}/a.jpg",
        "outcome": "enqueued",
    }
    assert len(ended.records) == 3
    again = pinq("enqueue", "a.jpg", "p", "--json")
    assert [record["outcome"] for record in again.records] == ["duplicate"] * 3


def test_a_list_comes_from_a_file_or_from_stdin_and_a_bad_line_is_told(
    pinq: Pinq, tmp_path: Path
) -> None:
    text = b"uri,signature\nhttp://h/1.jpg,s1\nhttp://h/2.jpg,\nhttp://h/3.jpg,s3\n"
    (tmp_path / "l.csv").write_bytes(text)
    from_file = pinq("enqueue", "--from", "l.csv", "--json")
    assert from_file.code == 1
    assert [record["signature"] for record in from_file.records] == ["s1", "s3"]
    assert "l.csv:3: http://h/2.jpg: " in from_file.err
    assert "a signature column is needed" in from_file.err
    from_stdin = pinq("enqueue", "--from", "-", "--json", stdin=text)
    assert [record["outcome"] for record in from_stdin.records] == ["duplicate"] * 2
    assert "stdin:3: " in from_stdin.err


def test_names_of_any_bytes_come_through_and_never_break_the_terminal(
    pinq: Pinq, tmp_path: Path
) -> None:
    names = [b"s p.jpg", b"n\nl.jpg", b"\xff.jpg", b"[red]x.jpg", b"\x1b[31m.jpg"]
    for name in names:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(name)
    given = pinq("enqueue", *names, "--json")
    assert given.code == 0
    assert given.records[2]["uri"].endswith("/%FF.jpg")
    listed = pinq("enqueue", "--from", "-", "--json", stdin=b"\xff.jpg\ns p.jpg\r\n")
    assert [record["outcome"] for record in listed.records] == ["duplicate"] * 2
    for words in (["enqueue", *names], ["jobs", "ls"]):
        shown = pinq(*words).out
        assert "[red]x.jpg" in shown
        assert r"n\nl.jpg" in shown
        assert r"\udcff.jpg" in shown
        assert "\x1b" not in shown


def test_a_line_is_enqueued_when_it_comes_not_when_the_list_ends(
    tmp_path: Path, environment: dict[str, str], program: str, pinq: Pinq
) -> None:
    with subprocess.Popen(
        [program, "enqueue", "--from", "-", "--json"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a.jpg\n")
        process.stdin.flush()
        assert b'"enqueued"' in process.stdout.readline()
        assert len(pinq("jobs", "ls", "--json").records) == 1
        process.stdin.write(b"p/b.jpg\n")
        process.stdin.flush()
        assert b'"enqueued"' in process.stdout.readline()
        process.stdin.close()
    assert process.returncode == 0


def test_ctrl_c_ends_a_waiting_enqueue_cleanly(
    tmp_path: Path, environment: dict[str, str], program: str
) -> None:
    import signal

    with subprocess.Popen(
        [program, "enqueue", "--from", "-", "--json"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a.jpg\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130


def test_priority_and_time_are_the_jobs(pinq: Pinq) -> None:
    pinq("enqueue", "a.jpg", "--priority", "2", "--run-at", "+2h")
    pinq("enqueue", "p/b.jpg", "--run-at", "2100-01-01T00:00:00Z")
    first, other = pinq("jobs", "ls", "--json").records
    shown = pinq("jobs", "show", first["signature"]).out
    assert re.search(r"^priority +2$", shown, re.MULTILINE)
    due = datetime.fromisoformat(re.findall(r"due +(\S+)", shown)[0])
    assert abs((due - datetime.now(UTC)).total_seconds() - 7200) < 60
    assert "2100-01-01T00:00:00" in pinq("jobs", "show", other["signature"]).out
    (queue,) = pinq("queues", "ls", "--json").records
    assert (queue["pipeline"], queue["pending"], queue["scheduled"]) == ("default", 2, 2)


def test_jobs_are_listed_by_state_and_pipeline_and_no_more_than_asked(pinq: Pinq) -> None:
    pinq("enqueue", "a.jpg", "p")
    records = pinq("jobs", "ls", "--json").records
    assert records[0].keys() == {"signature", "pipeline", "state", "attempts", "uri", "errors"}
    assert {record["state"] for record in records} == {"pending"}
    assert len(pinq("jobs", "ls", "--json", "--limit", "2").records) == 2
    assert pinq("jobs", "ls", "--json", "--state", "dead").records == []
    assert len(pinq("jobs", "ls", "--json", "--pipeline", "default").records) == 3
    table = pinq("jobs", "ls", "--limit", "2")
    assert all(record["signature"] in table.out for record in records[:2])
    assert "and more" in table.err


def test_a_live_job_is_pending_and_is_not_requeued(pinq: Pinq) -> None:
    (record,) = pinq("enqueue", "a.jpg", "--json").records
    got = pinq("get", record["signature"], "--json")
    assert got.code == 0
    assert got.records == [
        {
            "signature": record["signature"],
            "galaxy": "default",
            "state": "pending",
            "signals": {},
        }
    ]
    ended = pinq("jobs", "requeue", record["signature"], "--json")
    assert (ended.code, ended.records) == (1, [{"requeued": 0}])


def test_a_home_may_have_spaces_and_signs_in_its_name(pinq: Pinq, tmp_path: Path) -> None:
    home = "a home #1 [é]"
    assert pinq("--home", home, "enqueue", "a.jpg").code == 0
    assert (tmp_path / home / "queue.db").exists()
    assert len(pinq("jobs", "ls", "--json", PINQ_HOME=home).records) == 1
