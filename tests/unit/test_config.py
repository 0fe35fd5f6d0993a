"""Settings: what is found, what is refused, and in which words."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pinq import config
from pinq.config import (
    MediaSettings,
    PeriodicSettings,
    PipelineSettings,
    RetentionSettings,
    Settings,
    SignalSettings,
    WorkerSettings,
)
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
        ("[worker]\nlease_seconds = nan", ["worker.lease_seconds = nan is no number"]),
        ("[worker]\nlease_seconds = inf", ["worker.lease_seconds = inf", "0.1 to 86400"]),
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
        ("[retention]\nsucceeded_hours = -1", ["retention.succeeded_hours = -1", "0 to inf"]),
        ("[retention]\ndead_hours = nan", ["retention.dead_hours"]),
        ("[retention]\ndead_hours = 'inf'", ["retention.dead_hours", "a number, not a string"]),
        ("[retention]\ndead_days = 7", ["retention.dead_days", "did you mean 'dead_hours'?"]),
        ("dead_hours = 7", ["dead_hours", "belongs in [retention]"]),
        ("periodic = {}", ["periodic is empty"]),
        ("[periodic.a]\nuri = 'u'", ["periodic.a.cron is missing"]),
        ("x = = 1", ["not valid TOML", "line 1"]),
    ],
)
def test_what_is_wrong_is_named_with_the_file_the_key_and_what_would_do(
    text: str, words: list[str]
) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


IMAGE = "[periodic.a]\ncron = '0 3 * * *'\nuri = 'http://h/a'\n"
MESSAGE = "[periodic.a]\ncron = '0 3 * * *'\nactor = 'dump'\nqueue = 'tasks'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (IMAGE.replace("0 3 * * *", "0 3 * *"), [".cron = '0 3 * *'", "five fields", "not 4"]),
        (IMAGE.replace("0 3", "0 24"), [".cron", "bad hour; it is 0-23", '"0 3 * * *"']),
        (IMAGE + "timezone = 'europe/berlin'", [".timezone", "did you mean 'Europe/Berlin'?"]),
        (IMAGE + "timezone = ''", [".timezone = ''", "for example"]),
        (IMAGE + "pipeline = 'defalt'", ["'defalt' is no pipeline; did you mean 'default'?"]),
        (IMAGE + "[pipelines.pins]", [".pipeline = 'default' is no pipeline", "have: pins"]),
        (IMAGE + "priority = 0", [".priority = 0", "1 (first) to 9"]),
        (IMAGE + "actor = 'dump'", ["a uri, for an image, or an actor", "one of the two"]),
        (IMAGE + "args = [1]", [".args goes with an actor"]),
        (IMAGE + "kwargs = {a = 1}", [".kwargs goes with an actor"]),
        (IMAGE + "queue = 'tasks'", [".queue goes with an actor"]),
        (IMAGE.replace("h/a", "{name}"), [".uri", "{tick} and no other braces"]),
        (IMAGE + "crom = 'x'", ["periodic.a.crom", "did you mean 'cron'?"]),
        ("[periodic.a]\ncron = '0 3 * * *'", ["periodic.a needs a uri"]),
        ("[periodic.'a b']", ["periodic.'a b'", "is no name"]),
        (MESSAGE + "pipeline = 'pins'", [".pipeline goes with a uri"]),
        (MESSAGE.replace("tasks", "default"), [".queue = 'default' is a pipeline's"]),
        (MESSAGE.replace("tasks", "1st"), [".queue = '1st' is no name"]),
        (MESSAGE.replace("dump", ""), [".actor is empty"]),
        (MESSAGE + "args = 3", [".args = 3 should be a list"]),
        (MESSAGE + "kwargs = []", [".kwargs = [] should be a table"]),
        (MESSAGE + "args = [2026-01-01]", ["sent as JSON", "date"]),
    ],
)
def test_what_is_wrong_with_a_periodic_job_is_told_when_the_settings_are_read(
    text: str, words: list[str]
) -> None:
    message = refusal(text)
    assert "periodic." in message
    for word in words:
        assert word in message


def test_without_any_time_zones_it_is_told_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinq.periodic.available_timezones", set)
    assert load(IMAGE + "timezone = 'UTC'").periodic["a"].timezone == "UTC"
    assert "pip install tzdata" in refusal(IMAGE + "timezone = 'Mars'")


def test_a_periodic_image_or_message_is_read(tmp_path: Path) -> None:
    text = IMAGE.replace("http://h/a", "cams/{tick}.jpg") + "timezone = 'Europe/Berlin'"
    assert load(text).periodic["a"] == PeriodicSettings(
        cron="0 3 * * *", timezone="Europe/Berlin", uri=f"file://{tmp_path}/cams/{{tick}}.jpg"
    )
    entry = load(MESSAGE + "args = [1, 'two', [3]]\nkwargs = {deep = true}").periodic["a"]
    assert (entry.args, entry.kwargs) == ((1, "two", [3]), {"deep": True})


def test_inf_keeps_jobs_for_ever() -> None:
    settings = load("[retention]\nsucceeded_hours = 0\ndead_hours = inf")
    assert settings.retention == RetentionSettings(0.0, math.inf)


def test_without_periodic_jobs_reading_the_settings_loads_no_cron() -> None:
    heavy = "{'cronsim', 'zoneinfo'}"
    program = f"import sys, pinq.config as c; c.load(); print(*({heavy} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (loaded.stdout.split(), loaded.stderr) == ([], "")


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
        "`[retention]`": RetentionSettings,
        "`[periodic.NAME]`": PeriodicSettings,
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
