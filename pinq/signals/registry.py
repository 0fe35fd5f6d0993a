"""Signals by name: the built-in ones, and users' own by ``module:attribute``.

A user's module is looked for where Python looks, and before that in the folder
of the settings file and in the working directory. A signal of the settings may not
have a built-in's name: what is stored as ``pdq@1`` is PDQ, whoever reads it.
"""

import copy
import sys
from collections.abc import Iterable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from pinq.config import Settings, SignalSettings
from pinq.errors import ConfigError, PinqError, SignalError
from pinq.nearest import nearest
from pinq.signals.contract import DTYPES, ImageInput, Signal, render_array
from pinq.store.contract import SignalValue

_BUILTIN = {
    "color": "pinq.signals.color:Color",
    "pdq": "pinq.signals.pdq:Pdq",
    "quality": "pinq.signals.quality:Quality",
}

_MAX_SIDE = 1 << 14
_MAX_VALUES = 1 << 20


def signals_for(settings: Settings, names: Iterable[str]) -> list[Signal]:
    """An instance of each signal named, in order, each name once.

    Raises:
        ConfigError: the settings name a signal that cannot be had: no such module or
            attribute, an import that fails, a built-in's name.
        SignalError: no signal has that name, or what was found breaks the contract.
    """
    return [_signal(settings, name) for name in dict.fromkeys(names)]


def render(settings: Settings, name: str, version: int, value: SignalValue) -> dict[str, Any]:
    """A stored value as JSON.

    By the signal's own ``render`` if its code is at hand and of that version; otherwise,
    and where that code fails, the plain array.
    """
    try:
        signal = _signal(settings, name)
        if signal.version == version:
            return signal.render(value.data, value.meta)
    except Exception:  # noqa: BLE001 -- a look-up must not fail for a user's code
        pass
    return render_array(value.dtype, value.shape, value.data, value.meta)


def _signal(settings: Settings, name: str) -> Signal:
    where = str(settings.source or "settings")
    own = settings.signals.get(name)
    if own is not None and name in _BUILTIN:
        raise ConfigError(
            f"{where}: signals.{name} has the name of a built-in signal; choose another, "
            f'for example "my-{name}"'
        )
    if own is not None:
        return _users_own(settings, name, own, f"{where}: signals.{name}")
    if name not in _BUILTIN:
        known = sorted({*_BUILTIN, *settings.signals})
        hint = nearest(name, known)
        raise SignalError(f"no signal is called {name!r}{hint}; known: {', '.join(known)}")
    module, _, attribute = _BUILTIN[name].partition(":")
    signal: Signal = getattr(import_module(module), attribute)()
    return signal


def _users_own(settings: Settings, name: str, own: SignalSettings, where: str) -> Signal:
    found = _resolve(settings, own.use, f"{where}.use")
    if isinstance(found, type) and issubclass(found, Signal):
        try:
            signal = found()
        except Exception as error:
            raise SignalError(
                f"{where}: {own.use}() raised {type(error).__name__}: {error}; a signal's class "
                "is made without arguments and has a compute method"
            ) from error
    elif isinstance(found, Signal):
        # A copy, since two names may use one instance.
        signal = copy.copy(found)
    else:
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise SignalError(
            f"{where}: {own.use} is {kind}, not a signal; name a subclass of pinq.Signal, "
            "or an instance of one"
        )
    try:
        signal.name = name
        if own.version is not None:
            signal.version = own.version
    except AttributeError as error:
        raise SignalError(
            f"{where}: {own.use} does not let its name and version be set: {error}; "
            "make them plain attributes"
        ) from error
    _check(signal, f"{where}: {own.use}")
    return signal


def _resolve(settings: Settings, use: str, where: str) -> Any:
    """What ``module:attribute`` names."""
    module_name, _, path = use.partition(":")
    folders = list(dict.fromkeys([*_beside(settings), str(Path.cwd())]))
    missing = [folder for folder in folders if folder not in sys.path]
    sys.path[:0] = missing
    try:
        found: Any = import_module(module_name)
    except PinqError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module_name):
            raise ConfigError(
                f"{where}: no module is called {error.name!r}; looked in {', '.join(folders)} "
                "and where Python looks. Put it there, or install it"
            ) from None
        raise ConfigError(
            f"{where}: importing {module_name!r} raised {type(error).__name__}: {error}; "
            f"try: python -c 'import {module_name}'"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            at = getattr(sys.modules[module_name], "__file__", None) or "built in"
            hint = nearest(part, dir(found))
            raise ConfigError(f"{where}: {module_name!r} ({at}) has no {path!r}{hint}")
        found = getattr(found, part)
    return found


def _beside(settings: Settings) -> list[str]:
    return [str(settings.source.parent)] if settings.source else []


def _is_part(missing: str | None, module: str) -> bool:
    """Whether ``missing`` is the module itself or a package it is in, not an import of its own."""
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _check(signal: Signal, where: str) -> None:
    """Raise SignalError unless the attributes of ``signal`` are what the contract says."""

    def require(condition: bool, attribute: str, rule: str) -> None:
        if not condition:
            value = getattr(signal, attribute, None)
            said = f"{attribute} = {value!r}" if hasattr(signal, attribute) else f"no {attribute}"
            raise SignalError(f"{where} has {said}; {rule}")

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    version = getattr(signal, "version", None)
    require(
        whole(version) and 1 <= version < 2**32,  # type: ignore[operator]
        "version",
        "give it a whole number from 1, in its class or as version in the settings",
    )
    dtype = getattr(signal, "dtype", None)
    require(isinstance(dtype, str) and dtype in DTYPES, "dtype", f"use one of {', '.join(DTYPES)}")
    shape = getattr(signal, "shape", None)
    require(
        isinstance(shape, tuple)
        and all(whole(side) and side > 0 for side in shape)
        and prod(shape) <= _MAX_VALUES,
        "shape",
        f"use a tuple of positive whole numbers, of at most {_MAX_VALUES} values in all, "
        "as in shape = (512,)",
    )
    wanted = getattr(signal, "input", None)
    require(
        isinstance(wanted, ImageInput)
        and all(whole(side) and 0 < side <= _MAX_SIDE for side in (wanted.height, wanted.width))
        and wanted.fit in ("stretch", "crop"),
        "input",
        f"use ImageInput(height=…, width=…) with sides of 1 to {_MAX_SIDE} "
        'and, if you like, fit="crop"',
    )
