"""The wheel, installed alone: a base install, with no torch and no checkout near."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("LICENSE", "README.md", "pyproject.toml", "setup.cfg", "MANIFEST.in"),
    *("pinq", "migrations", "workers"),
)


def _run(*command: str | Path, cwd: Path, home: Path | None = None) -> str:
    """The command's stdout; nothing of the surrounding Python leaks into it."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PINQ_", "VIRTUAL_ENV", "COVERAGE"))
    }
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, "PINQ_HOME": str(home)} if home else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from that sdist."""
    # From a copy: setuptools leaves build/ behind, and takes from one it finds.
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, tree / name)
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a fresh environment with the wheel and what it requires, no more.

    The requirements are linked from the environment of the tests, found by
    following the wheel's own metadata: one that setup.cfg forgot is missing.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    installer = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    _run(*installer, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    (metadata,) = site.glob("pinq-*.dist-info")
    for required in _closure(Distribution.at(metadata)):
        _link(required, site)
    return folder / "bin"


def _closure(of: Distribution) -> list[Distribution]:
    """What a distribution requires here without any extra, and so on."""
    found: dict[str, Distribution] = {}
    waiting = [of]
    while waiting:
        for requirement in waiting.pop().requires or ():
            name, marker = _parse(requirement)
            if name in found or not marker:
                continue
            found[name] = distribution(name)
            waiting.append(found[name])
    return list(found.values())


def _parse(requirement: str) -> tuple[str, bool]:
    """A requirement's normalised name, and whether its marker holds without extras."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    name = re.sub(r"[-_.]+", "-", parsed.name).lower()
    return name, parsed.marker is None or parsed.marker.evaluate({"extra": ""})


def _link(of: Distribution, site: Path) -> None:
    for top in {file.parts[0] for file in of.files or () if file.parts[0] != ".."}:
        if top != "__pycache__" and not (site / top).exists():
            (site / top).symlink_to(Path(str(of.locate_file(top))).resolve())


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        *("LICENSE", "README.md", "setup.cfg", "pyproject.toml"),
        *("pinq/py.typed", "workers/__init__.py", "migrations/script.py.mako"),
    } <= names


def test_the_wheel_holds_every_module_and_nothing_beside_pinq(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for folder, package in {
            "pinq": "pinq",
            "migrations": "pinq/migrations",
            "workers": "pinq/workers",
        }.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == expected
    assert any(re.fullmatch(r"pinq/migrations/versions/\d+_\w+\.py", name) for name in names)


def test_the_base_install_is_light(elsewhere: Path) -> None:
    probe = "import importlib.util as u; print(*[n for n in {} if u.find_spec(n)])"
    names = ("torch", "numpy", "PIL", "redis", "pytest")
    assert _run(elsewhere / "python", "-c", probe.format(names), cwd=elsewhere).split() == []


def test_the_installed_command_tells_its_version(elsewhere: Path, tmp_path: Path) -> None:
    from pinq import __version__

    assert __version__ in _run(elsewhere / "pinq", "--version", cwd=tmp_path)
    assert "enqueue" in _run(elsewhere / "pinq", "--help", cwd=tmp_path)


def test_the_installed_package_is_the_wheels(elsewhere: Path, tmp_path: Path) -> None:
    where = _run(
        elsewhere / "python",
        "-c",
        "import pinq; from pinq import Client; print(pinq.__file__, Client.__name__)",
        cwd=tmp_path,
    )
    path, name = where.rsplit(maxsplit=1)
    assert name == "Client"
    assert Path(path).is_relative_to(elsewhere.parent)


def test_the_installed_pinq_migrates_and_enqueues(elsewhere: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    image = tmp_path / "not decoded before work.jpg"
    image.write_bytes(b"\xff\xd8\xff")
    _run(elsewhere / "pinq", "db", "upgrade", cwd=tmp_path, home=home)
    _run(elsewhere / "pinq", "enqueue", image, cwd=tmp_path, home=home)
    listed = _run(elsewhere / "pinq", "jobs", "ls", "--json", cwd=tmp_path, home=home)
    (job,) = map(json.loads, listed.splitlines())
    assert job["state"] == "pending"
    assert "not%20decoded" in job["uri"] or str(image) in job["uri"]


def test_work_without_the_worker_extra_says_what_to_install(
    elsewhere: Path, tmp_path: Path
) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"\xff\xd8\xff")
    ran = subprocess.run(
        [elsewhere / "pinq", "--home", tmp_path / "home", "run", image],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert "pinq[worker]" in ran.stderr
