"""``pinq.toml`` → frozen settings.

``load()`` finds the file (``--config``, ``$PINQ_CONFIG``, ``./pinq.toml``);
with none, the embedded default stands: home ``.pinq/`` (``--home``,
``$PINQ_HOME``), a SQLite queue, a RocksDB store, event files, one pipeline
``default``. Relative paths in a settings file are relative to that file. In
``queue``, ``store`` and ``events`` three slashes begin a relative path and
four an absolute one, as SQLAlchemy has it.

A key that is unknown or ill-typed raises :class:`~pinq.errors.ConfigError`
naming the file, the key and the nearest valid one.
"""

import math
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
from urllib.parse import quote

from pinq.errors import ConfigError
from pinq.nearest import nearest

BUILTIN_SIGNALS = ("color", "pdq", "quality")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ATTRIBUTE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*\Z")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker process works.

    ``decode_threads`` and ``torch_threads`` of 0 mean: as many as fit this machine.
    """

    device: str = "auto"
    batch_size: int = 64
    threads: int = 2
    lease_seconds: float = 60.0
    patience_seconds: float = 30.0
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
    """One ingest namespace: its galaxy, its signals, how its jobs are tried.

    ``media`` says where an image is when a job names no URI: a URI, or a path,
    that holds ``{signature}``.
    """

    galaxy: str = "default"
    signals: tuple[str, ...] = BUILTIN_SIGNALS
    priority: int = 5
    max_attempts: int = 5
    backoff_seconds: float = 1.0
    backoff_max_seconds: float = 600.0
    media: str | None = None
    announce_unchanged: bool = False

    @property
    def event_source(self) -> str:
        """The ``source`` of the pipeline's events."""
        return f"/pinq/{self.galaxy}"


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """A signal of the user's: ``use = "module:attribute"``; ``version`` overrides its own."""

    use: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long after their end jobs are kept, by state; ``inf`` is for ever."""

    succeeded_hours: float = 24.0
    dead_hours: float = 168.0


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """A job that is enqueued whenever ``cron`` falls due in ``timezone``.

    Either an image's, ``uri`` (which may hold ``{tick}``) in ``pipeline``; or a message to a
    dramatiq ``actor`` on ``queue``.
    """

    cron: str
    timezone: str = "UTC"
    uri: str | None = None
    pipeline: str = "default"
    actor: str | None = None
    queue: str = "default"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything pinq is told. ``source`` is the file read, if any."""

    home: Path
    queue: str
    store: str
    events: tuple[str, ...]
    worker: WorkerSettings = WorkerSettings()
    media: MediaSettings = MediaSettings()
    retention: RetentionSettings = RetentionSettings()
    pipelines: Mapping[str, PipelineSettings] = field(
        default_factory=lambda: MappingProxyType({"default": PipelineSettings()})
    )
    signals: Mapping[str, SignalSettings] = field(default_factory=lambda: MappingProxyType({}))
    periodic: Mapping[str, PeriodicSettings] = field(default_factory=lambda: MappingProxyType({}))
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
            hint = nearest(name, self.pipelines)
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
        home: the folder of the embedded default; by default ``$PINQ_HOME``, the
            file's ``home``, or ``.pinq``.

    Raises:
        ConfigError: the file is missing, not TOML, or says something unknown.
    """
    source = _find(config)
    table = _read(source) if source else {}
    where = str(source) if source else "settings"
    base = source.parent if source else Path.cwd()
    _refuse_unknown(table, _TABLES[""], where, "")

    written_home = _typed(table.get("home", ".pinq"), str, where, "home")
    chosen_home = home or os.environ.get("PINQ_HOME")
    home_path = (
        _expanded(str(chosen_home), "--home" if home else "$PINQ_HOME").absolute()
        if chosen_home
        else (base / _expanded(written_home, f"{where}: home")).absolute()
    )
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
        retention=_build(RetentionSettings, table.get("retention", {}), where, "retention"),
        source=source,
    )
    if "pipelines" in table:
        pipelines = {
            name: replace(
                pipeline,
                media=_template(
                    pipeline.media, "{signature}", base, where, f"pipelines.{name}.media"
                ),
            )
            for name, pipeline in _build_each(
                PipelineSettings, table["pipelines"], where, "pipelines"
            ).items()
        }
        settings = replace(settings, pipelines=MappingProxyType(pipelines))
    if "signals" in table:
        settings = replace(
            settings, signals=_build_each(SignalSettings, table["signals"], where, "signals")
        )
    if "periodic" in table:
        periodic = {
            name: replace(
                entry,
                uri=_template(entry.uri, "{tick}", base, where, f"periodic.{name}.uri"),
            )
            for name, entry in _build_each(
                PeriodicSettings, table["periodic"], where, "periodic"
            ).items()
        }
        settings = replace(settings, periodic=MappingProxyType(periodic))
    _check_home(home_path)
    _check(settings, where)
    return settings


def _find(config: str | Path | None) -> Path | None:
    named = config or os.environ.get("PINQ_CONFIG")
    if named:
        how = "--config" if config else "$PINQ_CONFIG"
        path = _expanded(str(named), how).absolute()
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, not a settings file; check {how}")
        if not path.exists():
            raise ConfigError(f"{path}: no such settings file; check {how}")
        return path
    path = Path("pinq.toml").absolute()
    return path if path.is_file() else None


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text: {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None


def _expanded(path: str, what: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what} = {path!r}: {error}") from None


def _located(value: Any, base: Path, where: str, key: str) -> str:
    """A URL with its file path made absolute, relative to ``base``."""
    url: str = _typed(value, str, where, key)
    scheme, mark, rest = url.partition(":///")
    if not mark or scheme not in _PATHS:
        if "://" not in url and not url.startswith("log:"):
            example = _EXAMPLES[key.partition("[")[0]]
            raise ConfigError(f"{where}: {key} = {url!r} is not a URL; for example {example}")
        return url
    if not rest or rest == ":memory:":
        raise ConfigError(f"{where}: {key} = {url!r} names no file, and nothing would be kept")
    # As SQLAlchemy has it: sqlite:///relative, sqlite:////absolute. A file: URI is
    # absolute with three slashes too, unless it begins with a dot.
    absolute = scheme == "file" and not rest.startswith((".", "~"))
    path = _expanded(f"/{rest}" if absolute else rest, f"{where}: {key}")
    if scheme == "file":
        return f"file://{(base / path).absolute()}"
    return f"{scheme}:///{path if path.is_absolute() else (base / path).absolute()}"


# What is named by a path; after the slashes of others comes the name of a database.
_PATHS = ("sqlite", "rocksdb", "file")

_EXAMPLES = {
    "queue": '"sqlite:///.pinq/queue.db"',
    "store": '"rocksdb:///.pinq/signals"',
    "events": '"file:///.pinq/events"',
}


def _template(text: str | None, word: str, base: Path, where: str, key: str) -> str | None:
    """A URI or path as a URI; it may hold ``word``, and a pipeline's ``media`` must."""
    if text is None:
        return None
    others = text.replace(word, "")
    if (word not in text and word != "{tick}") or "{" in others or "}" in others:
        raise ConfigError(
            f"{where}: {key} = {text!r} should hold {word} and no other braces; "
            f'for example "s3://originals/{word}.jpg"'
        )
    if "://" in text:
        return text
    path = (base / _expanded(text, f"{where}: {key}")).absolute()
    return "file://" + quote(os.fsencode(path), safe="/{}")


def _build_each(cls: type[Any], table: Any, where: str, key: str) -> Mapping[str, Any]:
    table = _typed(table, dict, where, key)
    if not table:
        raise ConfigError(f"{where}: {key} is empty; leave it out or name at least one")
    for name in table:
        if not NAME.match(name):
            raise ConfigError(
                f"{where}: {key}.{name!r} is no name; use 1 to 64 of A-Z a-z 0-9 . _ -, "
                "a letter or digit first"
            )
    return MappingProxyType(
        {name: _build(cls, sub, where, f"{key}.{name}") for name, sub in table.items()}
    )


def _build(cls: type[Any], table: Any, where: str, key: str) -> Any:
    """One settings dataclass from one TOML table, every key checked."""
    table = _typed(table, dict, where, key)
    hints = typing.get_type_hints(cls)
    _refuse_unknown(table, set(hints), where, f"{key}.")
    required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
    missing = [name for name in required if name not in table]
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
    if kind is Any:
        return value
    if typing.get_origin(kind) is tuple:
        items, (of, _) = _typed(value, list, where, key), typing.get_args(kind)
        return tuple(_typed(v, of, where, f"{key}[{i}]") for i, v in enumerate(items))
    if typing.get_origin(kind) is Mapping:
        return MappingProxyType(_typed(value, dict, where, key))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(min(value, 1 << 63))
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{where}: {key} = nan is no number")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where}: {key} = {value!r} holds a NUL character")
        return value
    found = _WORDS.get(type(value), f"a {type(value).__name__}")
    raise ConfigError(f"{where}: {key} = {value!r} should be {_WORDS[kind]}, not {found}")


_WORDS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}

_TABLES = {
    "": {f.name for f in fields(Settings)} - {"source"},
    "worker": {f.name for f in fields(WorkerSettings)},
    "media": {f.name for f in fields(MediaSettings)},
    "retention": {f.name for f in fields(RetentionSettings)},
    "pipelines.NAME": {f.name for f in fields(PipelineSettings)},
    "signals.NAME": {f.name for f in fields(SignalSettings)},
    "periodic.NAME": {f.name for f in fields(PeriodicSettings)},
}


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str, prefix: str) -> None:
    for key in table:
        if key in known:
            continue
        # A key that exists elsewhere is in the wrong table, rather than misspelt.
        homes = [name for name, keys in _TABLES.items() if key in keys]
        if homes:
            home = f"in [{homes[0]}]" if homes[0] else "at the top of the file"
            hint = f"; {key!r} belongs {home}"
        else:
            hint = nearest(key, known)
        raise ConfigError(
            f"{where}: unknown key {prefix}{key}{hint}; known here: {', '.join(sorted(known))}"
        )


def _check_home(home: Path) -> None:
    """Refuse a home that cannot be one; it need not exist yet."""
    text = str(home)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!a}: the home's path must be UTF-8; choose another --home"
        ) from None
    try:
        existing = next(path for path in (home, *home.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{home}: {error.strerror}; choose another --home") from None
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file where a folder is needed; choose another --home")


def _check(settings: Settings, where: str) -> None:
    def require(condition: bool, key: str, value: object, rule: str) -> None:
        if not condition:
            raise ConfigError(f"{where}: {key} = {value!r} {rule}")

    def within(holder: object, table: str, key: str, low: float, high: float) -> None:
        value = getattr(holder, key)
        require(
            low <= value <= high, f"{table}.{key}", value, f"should be {low:.16g} to {high:.16g}"
        )

    worker, media = settings.worker, settings.media
    within(worker, "worker", "batch_size", 1, 4096)
    within(worker, "worker", "threads", 1, 256)
    within(worker, "worker", "lease_seconds", 0.1, 86_400)
    within(worker, "worker", "patience_seconds", 0.0, 86_400)
    within(worker, "worker", "decode_threads", 0, 1024)
    within(worker, "worker", "torch_threads", 0, 1024)
    require(
        bool(re.match(r"(auto|cpu|mps|cuda(:\d{1,4})?)\Z", worker.device)),
        "worker.device",
        worker.device,
        'is not "auto", "cpu", "mps", "cuda" or "cuda:N"',
    )
    for key in ("succeeded_hours", "dead_hours"):
        within(settings.retention, "retention", key, 0, math.inf)
    within(media, "media", "max_bytes", 1, 2**40)
    within(media, "media", "max_pixels", 1, 2**40)
    within(media, "media", "timeout_seconds", 0.001, 86_400)
    known_formats = MediaSettings().formats
    require(bool(media.formats), "media.formats", list(media.formats), "admits no format")
    for name in media.formats:
        require(
            name in known_formats,
            "media.formats",
            name,
            f"is not a format{nearest(name, known_formats)}; known: {', '.join(known_formats)}",
        )
    available = {*BUILTIN_SIGNALS, *settings.signals}
    for name, pipeline in settings.pipelines.items():
        key = f"pipelines.{name}"
        require(
            bool(NAME.match(pipeline.galaxy)),
            f"{key}.galaxy",
            pipeline.galaxy,
            "is no name; use 1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first",
        )
        within(pipeline, key, "priority", 1, 9)
        within(pipeline, key, "max_attempts", 1, 1_000_000)
        within(pipeline, key, "backoff_max_seconds", 0, 30 * 86_400)
        within(pipeline, key, "backoff_seconds", 0, pipeline.backoff_max_seconds)
        require(bool(pipeline.signals), f"{key}.signals", [], "names no signal")
        for signal in pipeline.signals:
            require(
                signal in available,
                f"{key}.signals",
                signal,
                f"is not a signal{nearest(signal, available)}; "
                f"known: {', '.join(sorted(available))}",
            )
            require(pipeline.signals.count(signal) == 1, f"{key}.signals", signal, "is named twice")
    for name, signal_settings in settings.signals.items():
        require(
            bool(_ATTRIBUTE.match(signal_settings.use)),
            f"signals.{name}.use",
            signal_settings.use,
            'is not "module:attribute"',
        )
        version = signal_settings.version
        require(
            version is None or 1 <= version < 2**32,
            f"signals.{name}.version",
            version,
            "should be 1 to 4294967295",
        )
    if settings.periodic:
        from pinq import periodic  # here, for it imports cronsim, and few need it

        for name, entry in settings.periodic.items():
            periodic.check(entry, settings.pipelines, f"{where}: periodic.{name}")
