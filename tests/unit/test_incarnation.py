"""Names of processes, and whether they died."""

import subprocess
import sys

from pinq.incarnation import has_died, incarnation

SAY = "from pinq.incarnation import incarnation; print(incarnation(), flush=True); input()"


def test_a_process_that_runs_has_not_died() -> None:
    assert not has_died(incarnation())


def test_no_two_names_are_the_same() -> None:
    assert incarnation() != incarnation()


def test_a_process_is_known_to_have_died_even_before_its_parent_asks() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert not has_died(name)
        process.kill()
        process.stdout.read()  # closed when it has ended; it is a zombie now
    assert has_died(name)


def test_a_pid_that_was_given_out_again_is_another_process() -> None:
    where, pid, started, rest = incarnation().split(":")
    assert has_died(":".join([where, pid, str(int(started) - 1), rest]))


def test_nothing_is_claimed_of_another_machine_or_of_other_names() -> None:
    _, pid, _, rest = incarnation().split(":")
    assert not has_died(f"0123456789ab:{pid}:1:{rest}")
    assert not has_died(f":{pid}:1:{rest}")
    assert not has_died("worker-7")
    assert not has_died("a:b:c:d")
