"""The shape of the tree: which way imports point, what importing costs, what is public."""

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pinq

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "pinq").rglob("*.py"))
INSTALLED = sorted([*MODULES, *(ROOT / "migrations").rglob("*.py"), *ROOT.glob("workers/*.py")])
MAX_LINES = 500
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}


def _names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_imports_point_one_way() -> None:
    # In a process of its own: the check changes the import path and the logging.
    checked = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
            "--no-logo",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_module_is_named_for_nothing() -> None:
    assert not [str(path) for path in INSTALLED if path.stem.strip("_") in EMPTY_NAMES]


@pytest.mark.parametrize("path", MODULES, ids=_names(MODULES))
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it by what it does"


@pytest.mark.parametrize("module", ["pinq", "pinq.client", "pinq.cli.main"])
def test_importing_loads_neither_torch_nor_dramatiq(module: str) -> None:
    heavy = "{'torch', 'dramatiq', 'PIL', 'numpy'}"
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == []


def test_the_public_names_are_sorted_and_importable() -> None:
    assert list(pinq.__all__) == sorted(pinq.__all__)
    for name in pinq.__all__:
        assert getattr(pinq, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = pinq.NoSuchName


def test_nothing_outside_the_command_line_prints() -> None:
    quiet = [path for path in INSTALLED if (ROOT / "pinq" / "cli") not in path.parents]
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in quiet
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not printing


def test_every_package_of_the_tree_is_installed() -> None:
    # setup.cfg lists them, because two of them stand at the top of the tree.
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    listed = setup["options"]["packages"].split()
    folders = {"pinq": "pinq", "migrations": "pinq.migrations", "workers": "pinq.workers"}
    found = [
        ".".join((package, *init.parent.relative_to(ROOT / folder).parts))
        for folder, package in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    # A folder without __init__.py would be importable here and missing from the wheel.
    for folder in {path.parent for path in INSTALLED}:
        assert (folder / "__init__.py").is_file(), f"{folder} has modules and no __init__.py"


def test_the_versions_agree() -> None:
    version = importlib.import_module("pinq._version").__version__
    assert pinq.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
