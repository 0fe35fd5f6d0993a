"""``pinq.toml`` → frozen settings.

``load()`` finds the file (``--config``, ``$PINQ_CONFIG``, ``./pinq.toml``);
with none, the embedded default stands: home ``.pinq/`` (``--home``,
``$PINQ_HOME``), a SQLite queue, a RocksDB store, event files, one pipeline
``default``. Relative paths in a settings file are relative to that file.

A key that is unknown or ill-typed raises :class:`~pinq.errors.ConfigError`
naming the file, the key and the nearest valid one.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pinq.errors import ConfigError

BUILTIN_SIGNALS = ("color", "pdq", "quality")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker process works.

    ``decode_threads`` and ``torch_threads`` of 0 mean: as many as fit this machine.
    """

    device: str = "auto"
    batch_size: int = 64
    threads: int = 2
    lease_seconds: float = 60.0
    decode_threads: int = 0
    torch_threads: int = 0


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """What is admitted as an image."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    timeout_seconds: float = 30.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """One ingest namespace: its galaxy, its signals, how its jobs are tried."""

    galaxy: str = "default"
    signals: tuple[str, ...] = BUILTIN_SIGNALS
    priority: int = 5
    max_attempts: int = 5
    backoff_seconds: float = 1.0
    backoff_max_seconds: float = 600.0
    media: str | None = None
    announce_unchanged: bool = False


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """A signal of the user's: ``use = "module:attribute"``; ``version`` overrides its own."""

    use: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything pinq is told. ``source`` is the file read, if any."""

    home: Path
    queue: str
    store: str
    events: tuple[str, ...]
    worker: WorkerSettings = WorkerSettings()
    media: MediaSettings = MediaSettings()
    pipelines: Mapping[str, PipelineSettings] = field(
        default_factory=lambda: MappingProxyType({"default": PipelineSettings()})
    )
    signals: Mapping[str, SignalSettings] = field(default_factory=lambda: MappingProxyType({}))
    source: Path | None = None

    def pipeline(self, name: str) -> PipelineSettings:
        """The settings of one pipeline.

        Raises:
            ConfigError: no pipeline has that name.
        """
        try:
            return self.pipelines[name]
        except KeyError:
            known = ", ".join(sorted(self.pipelines))
            hint = _nearest(name, self.pipelines)
            raise ConfigError(
                f"no pipeline is called {name!r}{hint}; the settings have: {known}"
            ) from None

    def galaxies(self) -> dict[str, tuple[str, ...]]:
        """Each galaxy and the pipelines that feed it."""
        feeding: dict[str, tuple[str, ...]] = {}
        for name, pipeline in self.pipelines.items():
            feeding[pipeline.galaxy] = (*feeding.get(pipeline.galaxy, ()), name)
        return feeding


def load(config: str | Path | None = None, home: str | Path | None = None) -> Settings:
    """Read the settings.

    Args:
        config: a settings file; by default ``$PINQ_CONFIG`` or ``./pinq.toml`` if there.
        home: the folder of the embedded default; by default the file's ``home``,
            ``$PINQ_HOME`` or ``.pinq``.

    Raises:
        ConfigError: the file is missing, not TOML, or says something unknown.
    """
    source = _find(config)
    table = _read(source) if source else {}
    where = str(source) if source else "settings"
    base = source.parent if source else Path.cwd()

    chosen_home = home or os.environ.get("PINQ_HOME")
    if chosen_home is not None:
        home_path = Path(chosen_home)
    else:
        home_path = base / _typed(table.get("home", ".pinq"), str, where, "home")
    home_path = home_path.expanduser().absolute()

    known = {f.name for f in fields(Settings)} - {"source"}
    _refuse_unknown(table, known, where, "")
    settings = Settings(
        home=home_path,
        queue=_located(table.get("queue", f"sqlite:///{home_path}/queue.db"), base, where, "queue"),
        store=_located(table.get("store", f"rocksdb:///{home_path}/signals"), base, where, "store"),
        events=tuple(
            _located(url, base, where, f"events[{index}]")
            for index, url in enumerate(
                _typed(table.get("events", [f"file:///{home_path}/events"]), list, where, "events")
            )
        ),
        worker=_build(WorkerSettings, table.get("worker", {}), where, "worker"),
        media=_build(MediaSettings, table.get("media", {}), where, "media"),
        source=source,
    )
    if "pipelines" in table:
        settings = replace(
            settings,
            pipelines=_build_each(PipelineSettings, table["pipelines"], where, "pipelines"),
        )
    if "signals" in table:
        settings = replace(
            settings, signals=_build_each(SignalSettings, table["signals"], where, "signals")
        )
    _check(settings, where)
    return settings


def _find(config: str | Path | None) -> Path | None:
    named = config or os.environ.get("PINQ_CONFIG")
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"{path}: no such settings file; check --config or $PINQ_CONFIG")
        return path
    path = Path("pinq.toml").absolute()
    return path if path.is_file() else None


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None


def _located(url: Any, base: Path, where: str, key: str) -> str:
    """A URL with its file path made absolute, relative to ``base``."""
    url = _typed(url, str, where, key)
    scheme, mark, rest = url.partition(":///")
    if not mark:
        if "://" not in url and not url.startswith("log:"):
            raise ConfigError(
                f"{where}: {key} = {url!r} is not a URL; for example {_EXAMPLES.get(key[:5], '')}"
            )
        return url
    # Both sqlite:///relative and sqlite:////absolute are customary.
    path = Path(rest).expanduser()
    return f"{scheme}:///{path if path.is_absolute() else (base / path).absolute()}"


_EXAMPLES = {
    "queue": '"sqlite:///.pinq/queue.db"',
    "store": '"rocksdb:///.pinq/signals"',
    "event": '["file:///.pinq/events"]',
}


def _build_each(cls: type[Any], table: Any, where: str, key: str) -> Mapping[str, Any]:
    table = _typed(table, dict, where, key)
    if not table:
        raise ConfigError(f"{where}: {key} is empty; leave it out or name at least one")
    for name in table:
        if not NAME.match(name):
            raise ConfigError(
                f"{where}: {key}.{name!r} is no name; use 1 to 64 of A-Z a-z 0-9 . _ -"
            )
    return MappingProxyType(
        {name: _build(cls, sub, where, f"{key}.{name}") for name, sub in table.items()}
    )


def _build(cls: type[Any], table: Any, where: str, key: str) -> Any:
    """One settings dataclass from one TOML table, every key checked."""
    table = _typed(table, dict, where, key)
    hints = typing.get_type_hints(cls)
    _refuse_unknown(table, set(hints), where, f"{key}.")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in table]
    if missing:
        raise ConfigError(f"{where}: {key}.{missing[0]} is missing")
    return cls(
        **{
            name: _typed(value, hints[name], where, f"{key}.{name}")
            for name, value in table.items()
        }
    )


def _typed(value: Any, kind: Any, where: str, key: str) -> Any:
    """``value`` as ``kind``, or a ConfigError that says what was expected."""
    if isinstance(kind, types.UnionType):
        kind = next(arg for arg in typing.get_args(kind) if arg is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        items = _typed(value, list, where, key)
        return tuple(_typed(v, str, where, f"{key}[{i}]") for i, v in enumerate(items))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise ConfigError(
        f"{where}: {key} = {value!r} should be {_WORDS[kind]}, not {_WORDS.get(type(value), 'that')}"
    )


_WORDS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            hint = _nearest(key, known)
            raise ConfigError(
                f"{where}: unknown key {prefix}{key}{hint}; known: {', '.join(sorted(known))}"
            )


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check(settings: Settings, where: str) -> None:
    def require(condition: bool, key: str, value: object, rule: str) -> None:
        if not condition:
            raise ConfigError(f"{where}: {key} = {value!r} {rule}")

    worker, media = settings.worker, settings.media
    require(
        1 <= worker.batch_size <= 4096, "worker.batch_size", worker.batch_size, "is not 1 to 4096"
    )
    require(1 <= worker.threads <= 256, "worker.threads", worker.threads, "is not 1 to 256")
    require(
        worker.lease_seconds >= 0.1, "worker.lease_seconds", worker.lease_seconds, "is under 0.1"
    )
    require(
        worker.decode_threads >= 0, "worker.decode_threads", worker.decode_threads, "is negative"
    )
    require(worker.torch_threads >= 0, "worker.torch_threads", worker.torch_threads, "is negative")
    require(media.max_bytes > 0, "media.max_bytes", media.max_bytes, "is not positive")
    require(media.max_pixels > 0, "media.max_pixels", media.max_pixels, "is not positive")
    require(
        media.timeout_seconds > 0, "media.timeout_seconds", media.timeout_seconds, "is not positive"
    )
    require(
        bool(re.match(r"(auto|cpu|mps|cuda(:\d+)?)\Z", worker.device)),
        "worker.device",
        worker.device,
        'is not "auto", "cpu", "mps", "cuda" or "cuda:N"',
    )
    known_formats = set(MediaSettings().formats)
    for name in media.formats:
        require(
            name in known_formats, "media.formats", name, f"is not one of {sorted(known_formats)}"
        )
    available = {*BUILTIN_SIGNALS, *settings.signals}
    for name, pipeline in settings.pipelines.items():
        key = f"pipelines.{name}"
        require(bool(NAME.match(pipeline.galaxy)), f"{key}.galaxy", pipeline.galaxy, "is no name")
        require(1 <= pipeline.priority <= 9, f"{key}.priority", pipeline.priority, "is not 1 to 9")
        require(
            pipeline.max_attempts >= 1, f"{key}.max_attempts", pipeline.max_attempts, "is under 1"
        )
        require(
            0 <= pipeline.backoff_seconds <= pipeline.backoff_max_seconds,
            f"{key}.backoff_seconds",
            pipeline.backoff_seconds,
            "is negative or above backoff_max_seconds",
        )
        require(bool(pipeline.signals), f"{key}.signals", pipeline.signals, "names no signal")
        for signal in pipeline.signals:
            hint = _nearest(signal, available)
            require(
                signal in available,
                f"{key}.signals",
                signal,
                f"is not a signal{hint}; known: {', '.join(sorted(available))}",
            )
    for name, signal_settings in settings.signals.items():
        require(
            bool(re.match(r"[\w.]+:[\w.]+\Z", signal_settings.use)),
            f"signals.{name}.use",
            signal_settings.use,
            'is not "module:attribute"',
        )
        version = signal_settings.version
        require(
            version is None or 1 <= version < 2**32,
            f"signals.{name}.version",
            version,
            "is not 1 to 4294967295",
        )
