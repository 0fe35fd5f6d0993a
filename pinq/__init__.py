"""pinq: a durable job queue that turns images into stored, announced signals.

The names below are the whole public surface; everything else may change.
They are imported on first use, so that ``pinq --help`` does not pay for
SQLAlchemy.
"""

from typing import TYPE_CHECKING

from pinq._version import __version__

if TYPE_CHECKING:
    from pinq.client import Client
    from pinq.errors import PinqError
    from pinq.signals.contract import Computed, ImageInput, Signal

__all__ = ["Client", "Computed", "ImageInput", "PinqError", "Signal", "__version__"]

_HOMES = {
    "Client": "pinq.client",
    "Computed": "pinq.signals.contract",
    "ImageInput": "pinq.signals.contract",
    "PinqError": "pinq.errors",
    "Signal": "pinq.signals.contract",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pinq' has no attribute {name!r}")
