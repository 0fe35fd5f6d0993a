"""What a person names (paths, folders, globs, lists) → signed items to enqueue.

Everything streams: a folder of ten million files or a list as long costs the
memory of one directory, one line, and a bounded look-ahead. What cannot be
used becomes a :class:`~pinq.ingest.items.BadItem` in its place, and the rest goes on.
"""
