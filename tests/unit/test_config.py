"""Settings: what is found, what is refused, and in which words."""

import dataclasses
import os
import re
import tomllib
from pathlib import Path

import pytest

from pinq import config
from pinq.config import MediaSettings, PipelineSettings, Settings, SignalSettings, WorkerSettings
from pinq.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PINQ_HOME", raising=False)
    monkeypatch.delenv("PINQ_CONFIG", raising=False)


def load(text: str = "", **options: str) -> Settings:
    Path("pinq.toml").write_text(text, "utf-8")
    return config.load(**options)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert str(Path("pinq.toml").absolute()) in message
    return message


def test_without_a_file_the_embedded_default_stands(tmp_path: Path) -> None:
    settings = config.load()
    assert settings.home == tmp_path / ".pinq"
    assert settings.queue == f"sqlite:///{tmp_path}/.pinq/queue.db"
    assert settings.store == f"rocksdb:///{tmp_path}/.pinq/signals"
    assert settings.events == (f"file:///{tmp_path}/.pinq/events",)
    assert list(settings.pipelines) == ["default"]
    assert settings.source is None
    assert not (tmp_path / ".pinq").exists()


def test_the_option_comes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load('home = "in-file"').home == tmp_path / "in-file"
    monkeypatch.setenv("PINQ_HOME", "in-environment")
    assert load('home = "in-file"').home == tmp_path / "in-environment"
    assert load('home = "in-file"', home="given").home == tmp_path / "given"


def test_an_empty_environment_variable_counts_as_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINQ_HOME", "")
    monkeypatch.setenv("PINQ_CONFIG", "")
    assert config.load().home == tmp_path / ".pinq"


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "my.toml").write_text(
        'home = "h"\nstore = "rocksdb:///s"\nevents = ["file:////abs/e", "log:"]\n'
        '[pipelines.default]\nmedia = "pics/{signature}.jpg"\n'
    )
    settings = config.load("etc/my.toml")
    assert settings.home == folder / "h"
    assert settings.queue == f"sqlite:///{folder}/h/queue.db"
    assert settings.store == f"rocksdb:///{folder}/s"
    assert settings.events == ("file:////abs/e", "log:")
    assert settings.pipeline("default").media == f"file://{folder}/pics/{{signature}}.jpg"
    assert settings.source == folder / "my.toml"


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("[worker]\nthreads = 7\n")
    monkeypatch.setenv("PINQ_CONFIG", "other.toml")
    assert load("[worker]\nthreads = 3\n").worker.threads == 7


def test_a_byte_order_mark_is_taken_in_stride() -> None:
    assert load("\ufeff[worker]\nthreads = 3\n").worker.threads == 3


def test_a_query_of_the_queues_url_is_kept(tmp_path: Path) -> None:
    settings = load('queue = "sqlite:///q.db?synchronous=normal"')
    assert settings.queue == f"sqlite:///{tmp_path}/q.db?synchronous=normal"


def test_a_whole_number_does_for_a_number() -> None:
    assert load("[worker]\nlease_seconds = 5\n").worker.lease_seconds == 5.0


def test_settings_are_frozen() -> None:
    settings = config.load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.home = Path("/")  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.pipelines["x"] = PipelineSettings()  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queu = 'sqlite:///q'", ["queu", "did you mean 'queue'?"]),
        ("Queue = 'sqlite:///q'", ["Queue", "did you mean 'queue'?"]),
        ("[worker]\nbatchsize = 3", ["worker.batchsize", "did you mean 'batch_size'?"]),
        ("[worker]\nDEVICE = 'cpu'", ["worker.DEVICE", "did you mean 'device'?"]),
        ("batch_size = 3", ["unknown key batch_size", "belongs in [worker]"]),
        ("[pipelines.a]\nversion = 3", ["pipelines.a.version", "[signals.NAME]"]),
        ("[worker]\nhome = 'x'", ["worker.home", "at the top of the file"]),
        ("[pipelines.a]\nmax_attempt = 3", ["pipelines.a.max_attempt", "'max_attempts'"]),
        ("[zzzzzz]", ["unknown key zzzzzz", "known here: events, home"]),
        ("worker = 3", ["worker = 3", "a table", "a whole number"]),
        ("[worker]\nbatch_size = '64'", ["worker.batch_size", "a whole number, not a string"]),
        ("[worker]\nbatch_size = 6.5", ["worker.batch_size", "a whole number, not a number"]),
        ("[worker]\nbatch_size = true", ["worker.batch_size", "not true or false"]),
        ("[worker]\nlease_seconds = true", ["worker.lease_seconds", "a number"]),
        ("[worker]\nlease_seconds = nan", ["worker.lease_seconds", "finite"]),
        ("[worker]\nlease_seconds = inf", ["worker.lease_seconds", "finite"]),
        ("[worker]\nlease_seconds = 1979-05-27", ["worker.lease_seconds", "a date"]),
        ("[worker]\nbatch_size = 0", ["worker.batch_size = 0", "1 to 4096"]),
        ("[worker]\ndevice = 'gpu'", ["worker.device = 'gpu'", "cuda:N"]),
        ("[media]\nmax_bytes = 0", ["media.max_bytes"]),
        ("[media]\nformats = []", ["media.formats", "no format"]),
        ("[media]\nformats = ['jpeg']", ["media.formats", "did you mean 'JPEG'?"]),
        ("[media]\nformats = 'JPEG'", ["media.formats", "a list, not a string"]),
        ("[media]\nformats = [3]", ["media.formats[0] = 3", "a string"]),
        ("events = 'log:'", ["events", "a list"]),
        ("events = ['stdout']", ["events[0] = 'stdout'", "not a URL", "file:///"]),
        ("queue = 'queue.db'", ["queue = 'queue.db'", "sqlite:///"]),
        ("queue = 'sqlite:///:memory:'", ["queue", "nothing would be kept"]),
        ("queue = 'sqlite:///'", ["queue", "names no file"]),
        ("home = 3", ["home = 3", "a string"]),
        ('home = "a\\u0000b"', ["home", "NUL"]),
        ("home = '~nobody-of-that-name/x'", ["home", "~nobody-of-that-name"]),
        ("pipelines = {}", ["pipelines is empty"]),
        ("[pipelines.'a b']", ["pipelines.'a b'", "is no name"]),
        ("[pipelines.a]\ngalaxy = 'x/y'", ["pipelines.a.galaxy", "is no name"]),
        ("[pipelines.a]\npriority = 10", ["pipelines.a.priority = 10", "1 to 9"]),
        ("[pipelines.a]\nmax_attempts = 0", ["pipelines.a.max_attempts"]),
        ("[pipelines.a]\nbackoff_seconds = 700", ["pipelines.a.backoff_seconds", "0 to 600"]),
        ("[pipelines.a]\nsignals = []", ["pipelines.a.signals", "names no signal"]),
        ("[pipelines.a]\nsignals = ['pqd']", ["'pqd' is not a signal", "did you mean 'pdq'?"]),
        ("[pipelines.a]\nsignals = ['pdq', 'pdq']", ["'pdq' is named twice"]),
        ("[pipelines.a]\nmedia = 's3://b/x.jpg'", ["pipelines.a.media", "{signature}"]),
        ("[pipelines.a]\nmedia = 's3://b/{signature}{x}'", ["pipelines.a.media", "braces"]),
        ("[signals.mine]", ["signals.mine.use is missing"]),
        ("[signals.mine]\nuse = 'm'", ["signals.mine.use = 'm'", "module:attribute"]),
        ("[signals.mine]\nuse = 'm..n:a'", ["signals.mine.use"]),
        ("[signals.mine]\nuse = 'm:a'\nversion = 0", ["signals.mine.version = 0"]),
        ("x = = 1", ["not valid TOML", "line 1"]),
    ],
)
def test_what_is_wrong_is_named_with_the_file_the_key_and_what_would_do(
    text: str, words: list[str]
) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


def test_a_file_that_is_not_text_is_refused() -> None:
    Path("pinq.toml").write_bytes(b"home = '\xff'")
    with pytest.raises(ConfigError, match=r"pinq\.toml: not UTF-8"):
        config.load()


@pytest.mark.parametrize(("name", "words"), [("gone.toml", "no such"), (".", "is a folder")])
def test_a_named_file_must_be_there(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.load(name)


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_is_a_file_is_refused(tmp_path: Path, home: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file where a folder is needed"):
        config.load(home=home)


@pytest.mark.parametrize("home", [os.fsdecode(b"\xff")])
def test_a_home_that_the_queue_or_the_store_could_not_open_is_refused(home: str) -> None:
    with pytest.raises(ConfigError, match="home's path"):
        config.load(home=home)


def test_an_unknown_pipeline_is_refused_with_the_nearest_one() -> None:
    settings = load("[pipelines.pins]\n[pipelines.crawl]\n")
    with pytest.raises(ConfigError, match=r"'pinz'; did you mean 'pins'\?.*crawl, pins"):
        settings.pipeline("pinz")


def test_galaxies_know_the_pipelines_that_feed_them() -> None:
    settings = load("[pipelines.a]\ngalaxy = 'g'\n[pipelines.b]\ngalaxy = 'g'\n[pipelines.c]\n")
    assert settings.galaxies() == {"g": ("a", "b"), "default": ("c",)}


def test_a_signal_of_the_users_can_be_named_in_a_pipeline() -> None:
    settings = load(
        "[pipelines.default]\nsignals = ['mine', 'pdq']\n"
        "[signals.mine]\nuse = 'my.module:Mine'\nversion = 3\n"
    )
    assert settings.signals["mine"] == SignalSettings("my.module:Mine", 3)


def test_every_key_stands_in_the_reference_with_its_default() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    tables = {
        "At the top of the file": Settings,
        "`[worker]`": WorkerSettings,
        "`[media]`": MediaSettings,
        "`[pipelines.NAME]`": PipelineSettings,
        "`[signals.NAME]`": SignalSettings,
    }
    for title, settings in tables.items():
        (section,) = (each for each in sections if each.startswith(title + "\n"))
        rows = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\| ", section, re.MULTILINE))
        keys = {each.name: each for each in dataclasses.fields(settings)}
        keys.pop("source", None)
        assert rows.keys() == keys.keys()
        for name, row in rows.items():
            if settings is Settings or not row.startswith("`"):
                continue
            written = tomllib.loads(f"x = {row.strip('`')}")["x"]
            default = keys[name].default
            assert written == (list(default) if isinstance(default, tuple) else default)


def test_the_example_in_the_reference_is_valid() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    example = page.split("```toml\n")[1].split("```")[0]
    assert load(example).pipeline("pins").priority == 2
