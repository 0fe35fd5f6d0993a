"""From ``events = ["…"]`` in the settings to sinks."""

from pinq.errors import ConfigError
from pinq.outbox.sinks.contract import Sink
from pinq.outbox.sinks.file import FileSink
from pinq.outbox.sinks.log import LogSink


def open_sink(url: str) -> Sink:
    """The sink at ``url``.

    ``file:///folder`` writes segments of JSON lines into a folder of this
    machine (its path is taken as it stands, without percent-decoding); ``log:``
    writes each event to the log.

    Raises:
        ConfigError: the URL is of no known kind.
        ReadOnlyHome: the folder cannot be written.
        StorageFull: there is no space to make it.
    """
    scheme, mark, rest = url.partition(":")
    if scheme == "file" and rest.startswith("///") and rest.strip("/"):
        return FileSink("/" + rest.lstrip("/"))
    if mark and scheme == "log" and rest in ("", "//"):
        return LogSink()
    raise ConfigError(f"events: {url!r} is not supported; use file:///path/to/folder or log:")
