"""A writer is killed at random moments; what it had acknowledged is there."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinq.store.contract import SignalKey, SignalValue
from pinq.store.rocksdb import RocksdbStore

BATCH = 16

WRITER = f"""
import os, sys
from pinq.store.contract import SignalKey, SignalValue
from pinq.store import options
from pinq.store.rocksdb import RocksdbStore
options.WRITE_BUFFER_BYTES = 256 * 1024  # so that flushes and compactions are hit, too
store = RocksdbStore(sys.argv[1], write=True)
number = int(sys.argv[2])
while True:
    batch = range(number, number + {BATCH})
    store.put([
        (SignalKey("g", "pdq", 1, f"{{n:09d}}"),
         SignalValue("uint8", (4096,), n.to_bytes(8, "big") * 512, n))
        for n in batch
    ])
    number += {BATCH}
    os.write(1, b"%d\\n" % number)  # acknowledged, unbuffered
"""


@pytest.mark.parametrize("reader", ["owner", "beside"])
def test_every_acknowledged_put_is_readable_after_kill_9_at_random_moments(
    tmp_path: Path, reader: str
) -> None:
    seed = int(os.environ.get("PINQ_SEED", random.randrange(10**6)))
    print(f"seed {seed}: PINQ_SEED={seed} repeats it")
    rng = random.Random(seed)
    path = tmp_path / "signals"
    acknowledged = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(acknowledged)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()  # it is writing
        time.sleep(rng.uniform(0, 0.25))
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split()
        writer.wait()
        acknowledged = max([acknowledged + BATCH, *map(int, told[:-1])])
        if told and int(told[-1]) % BATCH == 0:  # a whole last line
            acknowledged = max(acknowledged, int(told[-1]))

        store = RocksdbStore(path, write=reader == "owner")
        wanted = [SignalKey("g", "pdq", 1, f"{n:09d}") for n in range(acknowledged)]
        for number, value in enumerate(store.get(wanted)):
            assert value == SignalValue(
                "uint8", (4096,), number.to_bytes(8, "big") * 512, number
            ), f"seed {seed}: put {number} of {acknowledged} acknowledged is gone"
        store.close()
    assert acknowledged > 8 * BATCH
