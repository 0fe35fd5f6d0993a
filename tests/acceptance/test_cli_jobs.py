"""``pinq jobs``: choosing jobs, and changing those that were chosen."""

import json
from pathlib import Path

import pytest

from pinq.queue.model import NewJob
from pinq.queue.urls import open_queue
from tests.acceptance.conftest import Pinq


@pytest.fixture
def filled(pinq: Pinq) -> Pinq:
    """Six pending jobs in two places, one of them scheduled, one of them urgent."""
    items = [{"uri": f"/photos/{name}.jpg", "signature": name} for name in ("a1", "a2", "b[1]")]
    items[2]["signature"] = "b1"
    lines = "\n".join(json.dumps(item) for item in items)
    assert pinq("enqueue", "--from", "-", stdin=lines.encode()).code == 0
    later = json.dumps({"uri": "/elsewhere/c1.jpg", "signature": "c1"})
    assert pinq("enqueue", "--from", "-", "--run-at", "2099-01-01", stdin=later.encode()).code == 0
    urgent = json.dumps({"uri": "/elsewhere/u1.jpg", "signature": "u1"})
    assert pinq("enqueue", "--from", "-", "--priority", "1", stdin=urgent.encode()).code == 0
    return pinq


def listed(pinq: Pinq, *words: str) -> list[str]:
    return [job["signature"] for job in pinq("jobs", "ls", "--json", *words).records]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "a1 a2 b1 c1 u1"),
        (["b1", "u1", "nobody"], "b1 u1"),
        (["--state", "pending", "--state", "dead"], "a1 a2 b1 c1 u1"),
        (["--state", "dead"], ""),
        (["--priority", "1"], "u1"),
        (["--uri", "*/photos/a*"], "a1 a2"),
        (["--scheduled"], "c1"),
        (["--due", "--uri", "*/elsewhere/*"], "u1"),
        (["--pipeline", "default", "--limit", "2"], "a1 a2"),
    ],
)
def test_jobs_are_listed_by_what_they_are(filled: Pinq, words: list[str], expected: str) -> None:
    assert listed(filled, *words) == expected.split()


def test_a_list_goes_on_where_the_last_one_ended(filled: Pinq) -> None:
    ended = filled("jobs", "ls", "--limit", "3", "--json")
    assert [job["signature"] for job in ended.records] == ["a1", "a2", "b1"]
    after = ended.err.rpartition("--after ")[2].split()[0]
    assert listed(filled, "--after", after) == ["c1", "u1"]
    assert filled("jobs", "ls", "--limit", "5", "--json").err == ""


def test_jobs_are_counted_by_what_they_failed_of(filled: Pinq) -> None:
    assert filled("jobs", "cancel", "--due").out == "4 cancelled\n"
    grouped = filled("jobs", "ls", "--group-by", "error", "--json")
    assert grouped.records == [{"error": "cancelled", "jobs": 4}, {"error": "none", "jobs": 1}]
    assert filled("jobs", "ls", "--group-by", "pipeline", "--json").records == [
        {"pipeline": "default", "jobs": 5}
    ]
    table = filled("jobs", "ls", "--group-by", "state", "--state", "dead").out
    assert [line.split() for line in table.splitlines()] == [["state", "jobs"], ["dead", "4"]]


def test_jobs_are_cancelled_requeued_and_deleted(filled: Pinq) -> None:
    assert filled("jobs", "cancel", "--uri", "*/photos/*", "--dry-run").out == (
        "3 would be cancelled\n"
    )
    assert listed(filled, "--state", "dead") == []
    assert filled("jobs", "cancel", "a1", "--json").records == [{"cancelled": 1}]
    shown = filled("jobs", "show", "a1")
    assert "dead" in shown.out and "cancelled by an operator" in shown.out
    again = filled("jobs", "cancel", "a1", "a2")
    assert (again.code, again.out, again.err) == (1, "1 cancelled\n", "a1: no live job\n")
    assert filled("jobs", "requeue", "--error", "cancelled", "--rate", "0.001").code == 0
    assert listed(filled, "--scheduled") == ["a2", "c1"]
    assert filled("jobs", "delete", "--scheduled").out == "2 deleted\n"
    assert listed(filled) == ["a1", "b1", "u1"]
    assert filled("jobs", "delete", "--all", "--pipeline", "default").out == "3 deleted\n"
    assert listed(filled) == []


@pytest.mark.parametrize(
    "words",
    [
        ["cancel"],
        ["delete"],
        ["requeue"],
        ["delete", "--pipeline", "default"],
        ["delete", "--all", "a1"],
        ["requeue", "--all-dead", "--uri", "*"],
        ["requeue", "--all-dead", "--rate", "0"],
        ["cancel", "--error", "tired"],
        ["cancel", "--priority", "0"],
        ["ls", "--group-by", "uri"],
        ["ls", "--after", "x"],
        ["ls", "--pipeline", "unheard-of"],
        ["delete", "--all", "--pipeline", "unheard-of"],
    ],
)
def test_what_chooses_nothing_or_nonsense_changes_nothing(filled: Pinq, words: list[str]) -> None:
    ended = filled("jobs", *words)
    assert ended.code == 2
    assert "Error: " in ended.err and "Traceback" not in ended.err
    assert len(listed(filled, "--state", "pending")) == 5


def test_what_a_job_carries_is_shown_and_chosen_by(pinq: Pinq, tmp_path: Path) -> None:
    queue = open_queue(f"sqlite:///{tmp_path}/.pinq/queue.db")
    jobs = [NewJob("a", body=b'{"to": "x"}', status="by hand"), NewJob("b", body=b"\xff\x00")]
    queue.enqueue("default", jobs)
    queue.close()
    shown = pinq("jobs", "show", "a").out
    assert 'body       11 bytes: {"to": "x"}' in shown and "status     by hand" in shown
    (record,) = pinq("jobs", "ls", "--body", '*"x"*', "--json").records
    assert (record["signature"], record["body"], record["status"]) == (
        "a",
        '{"to": "x"}',
        "by hand",
    )
    (record,) = pinq("jobs", "show", "b", "--json").records
    assert record["body_base64"] == "/wA="
