"""A Redis Cluster of three nodes: a queue lives in one slot, and queues on different nodes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.cluster import RedisCluster

from pinq.errors import QueueUnavailable
from pinq.patience import patiently
from pinq.queue.contract import Queue
from pinq.queue.model import Answer, Event, Filter, NewJob, Succeeded
from pinq.queue.moving import move
from pinq.queue.transfers import open_transfer
from pinq.queue.urls import open_queue

from ..conftest import need
from ..servers import RedisServer

SLOTS = 16_384
# Each on another node.
QUEUES = ("pins", "boards", "queue {with} odd: letters")


class Node(RedisServer):
    """A Redis that may join others, and serves its own slots whatever happens to theirs."""

    def _command(self) -> list[str]:
        cluster = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        cluster += ["--cluster-node-timeout", "2000"]
        # Its own default is ten thousand higher, among those that clients get.
        return [*super()._command(), *cluster, "--cluster-port", str(self.port - 1)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    need("redis")
    made: list[Node] = []
    try:
        for number in range(3):
            made.append(Node(tmp_path_factory.mktemp(f"node{number}")))
        shares = [SLOTS * number // 3 for number in range(4)]
        for node, first, end in zip(made, shares, shares[1:], strict=False):
            with redis.Redis(port=node.port) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
                for other in made:
                    client.execute_command(
                        "CLUSTER", "MEET", "127.0.0.1", other.port, other.port - 1
                    )
        for node in made:
            _await_whole(node)
        yield made
    finally:
        for node in made:
            node.stop()


def _await_whole(node: Node) -> None:
    deadline = time.monotonic() + 30
    with redis.Redis(port=node.port, decode_responses=True) as client:
        while True:
            told = str(client.execute_command("CLUSTER", "INFO"))
            if "cluster_state:ok" in told and f"cluster_slots_ok:{SLOTS}" in told:
                return
            assert time.monotonic() < deadline, told
            time.sleep(0.05)


@pytest.fixture
def url(nodes: list[Node]) -> str:
    for node in nodes:
        with redis.Redis(port=node.port) as client:
            client.flushall()
    return f"redis+cluster://127.0.0.1:{nodes[0].port}"


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    queue = open_queue(url)
    for name in QUEUES:
        queue.declare(name, source="/pinq/test")
    yield queue
    queue.close()


def _slots(node: Node) -> dict[str, int]:
    """The slot of each key on a node."""
    with redis.Redis(port=node.port, decode_responses=True) as client:
        keys = list(client.scan_iter("pinq:*"))
        return {key: int(client.execute_command("CLUSTER", "KEYSLOT", key)) for key in keys}


def _fill(queue: Queue, count: int) -> None:
    for name in QUEUES:
        queue.enqueue(name, [NewJob(f"{n}", body=b"\x00") for n in range(count)])


def test_all_keys_of_a_queue_are_in_one_slot_and_queues_on_different_nodes(
    queue: Queue, nodes: list[Node]
) -> None:
    _fill(queue, 20)
    lease = queue.lease(QUEUES[0], 10, 60, "w")
    assert lease
    event = Event("pinq.test", "/pinq/test", "0", {})
    queue.finish(lease.token, [Succeeded(lease.jobs[0].id, event), Succeeded(lease.jobs[1].id)])
    by_queue: dict[str, set[int]] = {}
    for key, slot in [pair for node in nodes for pair in _slots(node).items()]:
        if "{" in key:
            by_queue.setdefault(key[key.index("{") : key.index("}")], set()).add(slot)
    assert len(by_queue) == len(QUEUES)
    assert all(len(slots) == 1 for slots in by_queue.values())
    assert len({min(slots) * 3 // SLOTS for slots in by_queue.values()}) == 3


def test_one_call_leases_and_answers_queues_of_several_nodes(queue: Queue) -> None:
    _fill(queue, 30)
    done, answers = 0, list[Answer]()
    while True:
        told = queue.exchange(QUEUES, 16, 60, "w", answers=answers)
        done += sum(finished.succeeded for finished in told.finished)
        if not told.leases:
            break
        answers = [
            Answer(
                lease.token,
                [
                    Succeeded(job.id, Event("pinq.test", lease.queue, job.key, {}))
                    for job in lease.jobs
                ],
            )
            for lease in told.leases
        ]
    assert done == 30 * len(QUEUES)
    assert not queue.unfinished(QUEUES)
    seen = set[tuple[str, str]]()
    while events := queue.unpublished(25):
        seen |= {(each.source, each.subject) for each in events}
        queue.mark_published([each.position for each in events])
    assert seen == {(name, f"{n}") for name in QUEUES for n in range(30)}


def test_an_operator_sees_all_nodes(queue: Queue) -> None:
    _fill(queue, 5)
    assert sorted(queue.queues()) == sorted(QUEUES)
    assert {job.queue for job in queue.page(Filter(), limit=100).jobs} == set(QUEUES)
    assert queue.elect("relay", "a", 60)
    assert not queue.elect("relay", "b", 60)
    assert queue.cancel(Filter()) == 5 * len(QUEUES)


def test_a_waiter_hears_of_commits_on_every_node(queue: Queue, url: str) -> None:
    other = open_queue(url)
    seen = other.wait(0, 0)
    other.wait(seen, 0.5)  # it listens now
    for name in QUEUES:
        seen = other.wait(0, 0)
        late = threading.Timer(0.1, queue.enqueue, (name, [NewJob("late")]))
        late.start()
        assert other.wait(seen, 20) != seen
        late.join()
        assert other.lease(name, 1, 60, "w")
    other.close()


def test_a_queue_moves_out_of_a_cluster(queue: Queue, url: str, tmp_path: Path) -> None:
    _fill(queue, 10)
    source, target = open_transfer(url), open_transfer(f"sqlite:///{tmp_path}/queue.db")
    assert move(source, target).jobs == 10 * len(QUEUES)
    pending = {name: target.queue.count(name).pending for name in QUEUES}
    assert pending == dict.fromkeys(QUEUES, 10)
    source.queue.close()
    target.queue.close()


def test_a_node_that_is_down_stops_only_its_own_queues(
    queue: Queue, nodes: list[Node], url: str
) -> None:
    _fill(queue, 5)
    with RedisCluster.from_url(url.replace("+cluster", "")) as client:
        of = {name: client.keyslot(f"{{{name}}}") * 3 // SLOTS for name in ("pins", "boards")}
    assert of["pins"] != of["boards"]
    nodes[of["pins"]].kill()
    try:
        with pytest.raises(QueueUnavailable):
            queue.enqueue("pins", [NewJob("lost")])
        assert patiently(
            lambda: queue.lease("boards", 5, 60, "w"),
            patience_seconds=30,
            stop=threading.Event(),
        )
    finally:
        nodes[of["pins"]].start()
        for node in nodes:
            _await_whole(node)
    lease = patiently(
        lambda: queue.lease("pins", 10, 60, "w"), patience_seconds=30, stop=threading.Event()
    )
    assert lease and {job.key for job in lease.jobs} == {f"{n}" for n in range(5)}
