"""The client library, on a real queue and a real store."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pinq import Client
from pinq.config import load
from pinq.errors import ConfigError, FailureClass, InvalidInput
from pinq.queue.model import Dead, Failure, Outcome, State, Succeeded
from pinq.queue.urls import open_queue
from pinq.store.contract import SignalKey, SignalValue
from pinq.store.urls import open_store


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PINQ_HOME", raising=False)
    monkeypatch.delenv("PINQ_CONFIG", raising=False)
    for name in "abc":
        Path(f"{name}.jpg").write_bytes(name.encode())


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def end(client: Client, *, dead: bool = False, pipeline: str = "default") -> None:
    """Be the worker: end every job that is due."""
    queue = open_queue(client.settings.queue)
    while (lease := queue.lease(pipeline, 100, 60, "test")) is not None:
        failure = Failure(FailureClass.UNDECODABLE, "no image")
        queue.finish(
            lease.token,
            [Dead(job.id, failure) if dead else Succeeded(job.id) for job in lease.jobs],
        )
    queue.close()


def put(client: Client, signature: str, *signals: str, galaxy: str = "default") -> None:
    store = open_store(client.settings.store, write=True)
    value = SignalValue("uint8", (2, 2), b"\1\2\3\4", 1_700_000_000_123, {"quality": 9})
    store.put([(SignalKey(galaxy, name, 1, signature), value) for name in signals])
    store.close()


# --- enqueue --------------------------------------------------------------------


def test_an_image_is_enqueued_once(client: Client) -> None:
    first = client.enqueue("a.jpg")
    assert first.outcome is Outcome.ENQUEUED
    assert first.uri.startswith("file:///")
    again = client.enqueue(Path("a.jpg"))
    assert (again.signature, again.outcome) == (first.signature, Outcome.DUPLICATE)
    assert first.signature is not None
    job = client.job(first.signature)
    assert job is not None
    assert (job.state, job.priority, job.max_attempts) == (State.PENDING, 5, 5)


def test_force_runs_again_what_has_succeeded(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    end(client)
    assert client.enqueue("a.jpg", signature="s").outcome is Outcome.DUPLICATE
    assert client.enqueue("a.jpg", signature="s", force=True).outcome is Outcome.RERUN


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("gone.jpg", {}),
        ("http://h/x.jpg", {}),
        (None, {"signature": "s"}),
        ("a.jpg", {"signature": "a b"}),
        ("a.jpg", {"priority": 0}),
        ("a.jpg", {"priority": 10}),
        ("a.jpg", {"run_at": -1}),
        ("a.jpg", {"run_at": 2**60}),
    ],
)
def test_what_cannot_be_enqueued_raises_and_makes_nothing(
    client: Client, uri: str | None, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput):
        client.enqueue(uri, **options)  # type: ignore[arg-type]
    assert not Path(".pinq").exists()


def test_an_unknown_pipeline_is_refused_before_anything_is_read(client: Client) -> None:
    with pytest.raises(ConfigError, match="nope"):
        client.enqueue_many(["a.jpg"], pipeline="nope")


def test_run_at_is_a_datetime_or_milliseconds(client: Client) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    client.enqueue("a.jpg", signature="a", run_at=later)
    client.enqueue("b.jpg", signature="b", run_at=1234)
    one, other = client.job("a"), client.job("b")
    assert one is not None
    assert other is not None
    assert one.run_at_ms == round(later.timestamp() * 1000)
    assert other.run_at_ms <= int(time.time() * 1000)


def test_a_pipelines_settings_are_its_jobs_defaults() -> None:
    Path("pinq.toml").write_text(
        "[pipelines.pins]\npriority = 2\nmax_attempts = 7\ngalaxy = 'g'\n"
        "media = 's3://b/{signature}.jpg'\n"
    )
    with Client() as client:
        result = client.enqueue(None, signature="p1", pipeline="pins")
        assert result.uri == "s3://b/p1.jpg"
        job = client.job("p1", pipeline="pins")
        assert job is not None
        assert (job.priority, job.max_attempts) == (2, 7)
        client.enqueue("a.jpg", signature="p2", pipeline="pins", priority=9)
        urgent = client.job("p2", pipeline="pins")
        assert urgent is not None
        assert urgent.priority == 9


def test_many_items_of_any_kind_are_answered_in_order_and_bad_ones_cost_nothing_else(
    client: Client,
) -> None:
    results = list(
        client.enqueue_many(
            [
                "a.jpg",
                "gone.jpg",
                Path("b.jpg"),
                ("http://h/x", "s1"),
                {"uri": "c.jpg", "signature": "s2"},
                {"uri": Path("c.jpg")},
                {"url": "c.jpg"},
                (None, "s3"),
                3,  # type: ignore[list-item]
                "a.jpg",
            ],
            batch=3,
        )
    )
    assert [result.outcome and str(result.outcome) for result in results] == [
        "enqueued", None, "enqueued", "enqueued", "enqueued",
        "enqueued", None, None, None, "duplicate",
    ]  # fmt: skip
    assert all((result.error is None) == (result.outcome is not None) for result in results)
    assert [result.signature for result in results[3:5]] == ["s1", "s2"]


def test_items_are_streamed_and_a_result_that_is_out_is_committed(client: Client) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield "a.jpg", f"s{taken}"

    results = client.enqueue_many(endless(), batch=10)
    first = next(results)
    assert first.signature == "s1"
    assert taken < 200
    with Client() as other:
        assert other.job("s1") is not None


# --- look-up --------------------------------------------------------------------


def test_looking_makes_nothing(client: Client) -> None:
    assert client.lookup("s") == {}
    assert client.lookup(["s", "t"]) == {"s": {}, "t": {}}
    assert client.job("s") is None
    assert client.state("s").state == "unknown"
    assert not Path(".pinq").exists()


def test_a_stored_signal_comes_with_its_version_time_and_values(client: Client) -> None:
    put(client, "s", "pdq", "color")
    found = client.lookup("s")
    assert list(found) == ["color", "pdq"]
    signal = found["pdq"]
    assert (signal.version, signal.dtype, signal.shape) == (1, "uint8", (2, 2))
    assert signal.tolist() == [[1, 2], [3, 4]]
    assert signal.meta == {"quality": 9}
    assert signal.computed_at == datetime.fromtimestamp(1_700_000_000.123, UTC)
    assert list(client.lookup("s", signals=["pdq"])) == ["pdq"]
    assert client.lookup("s", galaxy="other") == {}
    assert {key: list(value) for key, value in client.lookup(["s", "t"]).items()} == {
        "s": ["color", "pdq"],
        "t": [],
    }


def test_a_client_that_is_open_sees_what_is_stored_later(client: Client) -> None:
    assert client.lookup("s") == {}
    put(client, "s", "pdq")
    assert list(client.lookup("s")) == ["pdq"]


def test_a_signature_that_cannot_be_one_is_refused(client: Client) -> None:
    for look in (client.lookup, client.job, client.state, client.wait):
        with pytest.raises(InvalidInput, match="is no signature"):
            look("a/b")


def test_the_state_follows_jobs_and_signals(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    assert client.state("s").state == "pending"
    put(client, "s", "pdq")
    assert client.state("s").state == "pending"
    assert client.state("s", signals=["pdq"]).state == "present"
    end(client, dead=True)
    failed = client.state("s")
    assert failed.state == "failed"
    assert list(failed.signals) == ["pdq"]
    assert failed.jobs[0].errors[0].message == "no image"
    put(client, "s", "color", "quality")
    assert client.state("s").state == "present"
    client.enqueue("a.jpg", signature="imported", run_at=2**47)
    put(client, "imported", "pdq", "color", "quality")
    assert client.state("imported").state == "present"


def test_a_job_that_is_to_bring_a_newer_version_is_pending() -> None:
    Path("pinq.toml").write_text(
        "[pipelines.default]\nsignals = ['mine']\n[signals.mine]\nuse = 'm:M'\nversion = 2\n"
    )
    with Client() as client:
        client.enqueue("a.jpg", signature="s")
        put(client, "s", "mine")
        assert client.state("s").state == "pending"
        end(client)
        assert client.state("s").state == "present"


def test_signals_without_a_job_are_present(client: Client) -> None:
    put(client, "imported", "pdq")
    assert client.state("imported").state == "present"


# --- waiting --------------------------------------------------------------------


def test_wait_returns_when_another_ends_the_job(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    client.enqueue("b.jpg", signature="t")
    timer = threading.Timer(0.2, end, [client])
    timer.start()
    jobs = client.wait(["s", "t"], timeout=20)
    assert {key: job.state for key, job in jobs.items()} == {
        "s": State.SUCCEEDED,
        "t": State.SUCCEEDED,
    }
    assert client.wait("s").state is State.SUCCEEDED
    timer.join()


def test_wait_returns_a_dead_job_too(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    end(client, dead=True)
    assert client.wait("s", 5).state is State.DEAD


def test_wait_ends_at_its_timeout_without_spinning(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    before = time.process_time()
    with pytest.raises(TimeoutError, match=r"1 of 1 jobs were not done within 0\.5 s"):
        client.wait("s", timeout=0.5)
    assert time.process_time() - before < 0.25


def test_to_wait_for_what_was_never_enqueued_is_refused(client: Client) -> None:
    with pytest.raises(InvalidInput, match="enqueue it first"):
        client.wait("s", timeout=5)


# --- the library ----------------------------------------------------------------


def test_settings_and_config_exclude_each_other() -> None:
    with pytest.raises(InvalidInput):
        Client(load(), home="x")


def test_a_closed_client_opens_anew_when_used(client: Client) -> None:
    client.enqueue("a.jpg", signature="s")
    client.close()
    client.close()
    assert client.job("s") is not None


def test_importing_and_using_it_loads_neither_torch_nor_dramatiq() -> None:
    program = (
        "import sys\n"
        "from pinq import Client\n"
        "with Client() as c:\n"
        "    c.enqueue('a.jpg', signature='s'); c.lookup('s'); c.state('s')\n"
        "print({'torch', 'dramatiq', 'numpy', 'PIL'} & {*sys.modules})"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.strip() == b"set()"
