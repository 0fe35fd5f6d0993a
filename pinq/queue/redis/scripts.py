"""The Lua scripts: files beside this one, put together with what they are written with.

A script's first line may say ``-- with: jobs attempts``: the files of functions that it calls.
Every script begins with ``prelude.lua``.
"""

from functools import cache
from importlib.resources import files

_WITH = "-- with:"


@cache
def script(name: str) -> str:
    """The whole text of a script."""
    text = _read(name)
    first = text.partition("\n")[0]
    parts = first.removeprefix(_WITH).split() if first.startswith(_WITH) else []
    return "\n".join([_read("prelude"), *map(_read, parts), text])


def _read(name: str) -> str:
    return files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
