"""Files that a person names: paths, folders, patterns."""

import glob
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pinq.errors import PinqError
from pinq.ingest.items import SCHEME, BadItem, words
from pinq.media.fetch import uri_to_path

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}


def discover(
    paths: Iterable[str | Path], *, formats: Collection[str] = tuple(EXTENSIONS)
) -> Iterator[Path | BadItem]:
    """The image files that ``paths`` name.

    A file is taken whatever it is called. A folder is read to its depths, in
    the order of its names, for files with the extension of one of ``formats``;
    hidden entries are skipped, and a link back to a folder above it is not
    followed. A pattern that the shell did not expand is expanded.
    """
    extensions = {suffix for name in formats for suffix in EXTENSIONS[name]}
    for path in paths:
        text = os.fspath(path)
        found = _local(text)
        if isinstance(found, BadItem):
            yield found
            continue
        kind = _kind(found)
        if kind is None and glob.has_magic(str(found)):
            # glob, not Path.glob: hidden names follow the shell's rules.
            matches = sorted(glob.iglob(str(found), recursive=True), key=os.fsencode)  # noqa: PTH207
            if not matches:
                yield BadItem(text, "matches nothing")
            for match in map(Path, matches):
                yield from _named(match, _kind(match), extensions)
        else:
            yield from _named(found, kind, extensions)


def _local(text: str) -> Path | BadItem:
    if text.startswith("file:"):
        try:
            return uri_to_path(text)
        except (PinqError, ValueError) as error:
            return BadItem(text, str(error))
    if (match := SCHEME.match(text)) and _kind(Path(text)) is None:
        return BadItem(
            text,
            f"the bytes of {match[1]}: are not at hand to be signed; "
            "name it in a list with a signature (--from)",
        )
    if not text:
        return BadItem(text, "an empty path")
    return Path(text)


def _kind(path: Path) -> int | str | None:
    """The file's type bits; None when there is no such file; words when it cannot be told."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except ValueError:
        return "holds a NUL byte"
    except OSError as error:
        return words(error)


def _named(path: Path, kind: int | str | None, extensions: set[str]) -> Iterator[Path | BadItem]:
    if kind == stat.S_IFDIR:
        yield from _folder(path, extensions)
    elif kind == stat.S_IFREG:
        yield path
    elif kind is None:
        broken = " (a broken link)" if path.is_symlink() else ""
        yield BadItem(str(path), f"no such file or folder{broken}")
    else:
        yield BadItem(str(path), kind if isinstance(kind, str) else "is not a regular file")


def _folder(root: Path, extensions: set[str]) -> Iterator[Path | BadItem]:
    seen: set[tuple[int, int]] = set()
    nothing = True
    # A stack of open levels, not recursion: trees may be deeper than Python's stack.
    levels: list[Iterator[os.DirEntry[str]]] = []

    def enter(folder: str) -> BadItem | None:
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith(".")]
                visible.sort(key=lambda entry: os.fsencode(entry.name))
                levels.append(iter(visible))
        except OSError as error:
            return BadItem(folder, words(error))
        return None

    bad = enter(str(root))
    if bad is not None:
        yield bad
        return
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        try:
            if entry.is_dir():
                bad = enter(entry.path)
            elif Path(entry.name).suffix.lower() not in extensions:
                continue
            elif entry.is_file():
                nothing = False
                yield Path(entry.path)
                continue
            elif Path(entry.path).exists():
                bad = BadItem(entry.path, "is not a regular file")
            else:
                bad = BadItem(entry.path, "no such file (a broken link)")
        except OSError as error:
            bad = BadItem(entry.path, words(error))
        if bad is not None:
            nothing = False
            yield bad
    if nothing:
        yield BadItem(str(root), f"holds no images (looked for {' '.join(sorted(extensions))})")
