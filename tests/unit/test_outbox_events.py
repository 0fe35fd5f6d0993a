"""Events as CloudEvents."""

import json

from pinq.outbox.events import cloud_event, computed_event
from pinq.queue.model import StoredEvent


def test_a_computed_event_says_what_was_computed_for_which_image() -> None:
    event = computed_event(
        source="/pinq/pins",
        signature="ab12",
        pipeline="uploads",
        attempt=2,
        signals={"pdq": 1, "color": 3},
        uri="file:///a.jpg",
    )
    assert (event.type, event.source, event.subject) == (
        "pinq.signal.computed",
        "/pinq/pins",
        "ab12",
    )
    assert event.data == {
        "pipeline": "uploads",
        "attempt": 2,
        "signals": {"color": 3, "pdq": 1},
        "uri": "file:///a.jpg",
    }


def test_a_stored_event_becomes_a_cloud_event() -> None:
    stored = StoredEvent(
        position=7,
        id="0198-x",
        type="pinq.signal.computed",
        source="/pinq/pins",
        subject="ab12",
        time_ms=1_700_000_000_007,
        data='{"uri": "a\\u00e9"}',
    )
    event = cloud_event(stored)
    assert event == {
        "specversion": "1.0",
        "id": "0198-x",
        "source": "/pinq/pins",
        "type": "pinq.signal.computed",
        "subject": "ab12",
        "time": "2023-11-14T22:13:20.007Z",
        "datacontenttype": "application/json",
        "partitionkey": "ab12",
        "data": {"uri": "aé"},
    }
    assert json.loads(json.dumps(event)) == event


def test_a_time_of_a_whole_second_keeps_its_milliseconds() -> None:
    stored = StoredEvent(1, "i", "t", "s", "x", 1_700_000_000_000, "{}")
    assert cloud_event(stored)["time"] == "2023-11-14T22:13:20.000Z"
