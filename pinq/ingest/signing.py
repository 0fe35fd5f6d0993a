"""Signatures: who an image is, and the URI it is fetched from."""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pinq.errors import PinqError
from pinq.ingest.items import SCHEME, SIGNATURE, BadItem, Item, Ready, Signed, words
from pinq.media.fetch import etag_of, path_to_uri, uri_to_path
from pinq.media.signature import new_digest, signature_of

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

_REMOTE = ("http", "https", "s3")
_WHOLE_BYTES = 16 * 1024 * 1024
_TOGETHER = 16  # items that one hashing thread takes at a time


def sign(path: Path, whole: int = _WHOLE_BYTES) -> Signed | BadItem:
    """The signature of the file's bytes, with the etag they had.

    A file of over ``whole`` bytes is read piece by piece.
    """
    try:
        # O_NONBLOCK so that a FIFO does not block; it is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        return BadItem(str(path), "holds a NUL byte")
    except OSError as error:
        return BadItem(str(path), words(error))
    try:
        before = os.fstat(descriptor)
        if stat.S_ISDIR(before.st_mode):
            return BadItem(str(path), "is a folder")
        if not stat.S_ISREG(before.st_mode):
            return BadItem(str(path), "is not a regular file")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            signature = (
                signature_of(file.read())
                if before.st_size <= whole
                else hashlib.file_digest(file, new_digest).hexdigest()
            )
        etag = etag_of(before)
        if etag_of(os.fstat(descriptor)) != etag:
            return BadItem(str(path), "changed while it was read; enqueue it once it is whole")
        return Signed(signature, etag)
    except OSError as error:
        return BadItem(str(path), words(error))
    finally:
        os.close(descriptor)


def prepare(
    items: Iterable[Item | Path | BadItem], *, media: str | None = None, threads: int = 2
) -> Iterator[Ready | BadItem]:
    """Each item with a signature and an absolute URI, or what is wrong with it; in order.

    Files without a signature are hashed, in ``threads`` threads and a bounded
    look-ahead when there are many. ``media`` is the pipeline's template for
    items that bring a signature and no URI.
    """
    source = iter(items)
    ahead: deque[list[Ready | BadItem] | Future[list[Ready | BadItem]]] = deque()
    pool: Executor | None = None
    try:
        while chunk := list(islice(source, _TOGETHER)):
            resolved = [_resolve(item, media) for item in chunk]
            unsigned = sum(isinstance(each, _Unsigned) for each in resolved)
            if unsigned <= 1 or len(chunk) < _TOGETHER or threads < 2:
                ahead.append(_sign_each(resolved))
            else:
                if pool is None:
                    from concurrent.futures import ThreadPoolExecutor

                    pool = ThreadPoolExecutor(threads, "pinq-sign")
                ahead.append(pool.submit(_sign_each, resolved))
            while len(ahead) > 2 * threads:
                yield from _outcome(ahead.popleft())
        while ahead:
            yield from _outcome(ahead.popleft())
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Unsigned:
    path: Path
    origin: str


def _outcome(
    done: "list[Ready | BadItem] | Future[list[Ready | BadItem]]",
) -> list[Ready | BadItem]:
    return done if isinstance(done, list) else done.result()


def _resolve(item: Item | Path | BadItem, media: str | None) -> Ready | _Unsigned | BadItem:
    if isinstance(item, BadItem):
        return item
    if isinstance(item, Path):
        return _Unsigned(item, "")
    text, signature, origin = item.source, item.signature, item.origin
    if signature is not None and not SIGNATURE.match(signature):
        return BadItem(
            signature, "is no signature: 1 to 128 of A-Z a-z 0-9 . _ - are allowed", origin
        )
    if not text:
        if signature is None:
            return BadItem("", "has neither uri nor signature", origin)
        if media is None:
            return BadItem(signature, "has no uri, and its pipeline no media template", origin)
        return Ready(signature, media.replace("{signature}", signature))
    if "\0" in text:
        return BadItem(text, "holds a NUL byte", origin)
    uri = text.strip()
    try:
        if uri.startswith("file:"):
            path = uri_to_path(uri)
        elif match := SCHEME.match(uri):
            scheme = match[1].lower()
            if scheme not in _REMOTE:
                return BadItem(text, f"{scheme}: is none of file, {', '.join(_REMOTE)}", origin)
            if signature is None:
                return BadItem(
                    text,
                    f"the bytes of {scheme}: are not at hand to be signed; "
                    "a signature column is needed",
                    origin,
                )
            if not uri.isprintable():
                return BadItem(
                    text, "holds bytes that no URI can hold; percent-encode them", origin
                )
            return Ready(signature, uri)
        else:
            path = Path(text)
        if signature is not None:
            return Ready(signature, path_to_uri(path))
        return _Unsigned(path, origin)
    except (PinqError, ValueError) as error:
        return BadItem(text, str(error), origin)


def _sign_each(resolved: list[Ready | _Unsigned | BadItem]) -> list[Ready | BadItem]:
    return [_sign_one(each) if isinstance(each, _Unsigned) else each for each in resolved]


def _sign_one(unsigned: _Unsigned) -> Ready | BadItem:
    try:
        uri = path_to_uri(unsigned.path)
    except (PinqError, ValueError) as error:
        return BadItem(str(unsigned.path), str(error), unsigned.origin)
    signed = sign(unsigned.path)
    if isinstance(signed, BadItem):
        return BadItem(signed.source, signed.reason, unsigned.origin)
    return Ready(signed.signature, uri, verify=True, etag=signed.etag)
