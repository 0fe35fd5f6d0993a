"""From ``store = "…"`` in the settings to a store."""

from pinq.errors import ConfigError
from pinq.store.contract import Store


def open_store(url: str, *, write: bool = False) -> Store:
    """Open the store at ``url``, to read or, with ``write``, to own and write.

    ``rocksdb:///path`` is a RocksDB in a folder of this machine; the path is
    taken as it stands, without percent-decoding.

    Raises:
        ConfigError: the URL is of no known kind.
        StoreOwned: another process owns the store (``write`` only).
        StoreCorrupt: the store's files are damaged.
        ReadOnlyHome: the folder cannot be written (``write`` only).
        StorageFull: there is no space to open it.
    """
    scheme, mark, rest = url.partition("://")
    path = rest.lstrip("/")
    if mark and scheme == "rocksdb" and rest.startswith("/") and path:
        from pinq.store.rocksdb import RocksdbStore  # loads a native library of 12 MB

        return RocksdbStore(f"/{path}", write=write)
    raise ConfigError(f"store = {url!r} is not supported; use rocksdb:///path/to/folder")
