"""The whole way on a server's queue, by the command line: ``queue = "postgresql://…"``."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import PHOTOS, Pinq
from tests.servers import fresh_database


@pytest.fixture(params=["postgres_server", "mariadb_server", "redis_server"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url: str = fresh_database(request.getfixturevalue(request.param))
    (tmp_path / "pinq.toml").write_text(f'queue = "{url}"\n')
    return url


def test_images_are_computed_by_way_of_a_servers_queue(pinq: Pinq, url: str) -> None:
    if not url.startswith("redis"):
        refused = pinq("enqueue", str(PHOTOS))
        assert refused.code == 3 and "run `pinq db upgrade`" in refused.err
        assert pinq("db", "upgrade").code == 0
    photos = len(list(PHOTOS.iterdir()))
    assert pinq("enqueue", str(PHOTOS)).code == 0
    assert pinq("jobs", "ls", "--group-by", "state", "--json").records == [
        {"state": "pending", "jobs": photos}
    ]
    done = pinq("worker", "--until-empty")
    assert done.code == 0, done.err
    assert pinq("relay", "--until-empty").code == 0
    (listed,) = pinq("queues", "ls", "--json").records
    assert (listed["succeeded"], listed["pending"]) == (photos, 0)
    again = pinq("run", str(PHOTOS), "--json")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://127.0.0.1:1/pinq", "is the server running"),
        ("mysql://127.0.0.1:1/pinq", "is the server running"),
        ("redis://127.0.0.1:1/0", "127.0.0.1:1"),
        ("postgresql://u:secret@127.0.0.1:1/pinq", "u:***@"),
        ("postgresql://u:s@cret:secret@127.0.0.1:1/pinq", "%40"),
        ("postgresql://127.0.0.1:1/pinq?password=secret", "is the server running"),
        ("oracle://u:secret@127.0.0.1:1/pinq", "'oracle' is not supported"),
    ],
)
def test_a_server_that_is_not_there_is_named_without_its_password(
    pinq: Pinq, tmp_path: Path, url: str, word: str
) -> None:
    (tmp_path / "pinq.toml").write_text(f'queue = "{url}"\n')
    ended = pinq("queues", "ls")
    assert ended.code == (2 if "oracle" in url or "@cret" in url else 3)
    assert word in ended.err and "cret" not in ended.err
    assert len(ended.err.splitlines()) <= 4
