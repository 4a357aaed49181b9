"""What a user installs is what the tree holds: the contents of wheel and sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"runtime": "td_runtime", "worker": "td_worker", "sharedcache": "td_sharedcache"}


def _build(source: Path, target: Path, *what: str) -> None:
    """Build offline with the hatchling of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", *what]
    done = subprocess.run(
        [*command, "--outdir", target, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _in_tree() -> set[str]:
    """Return what git would ship: the packages' files without byte code, as a wheel names them."""
    return {
        str(path.relative_to(ROOT / folder))
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and sdist from the tree, and in `again` a wheel from that sdist."""
    target = tmp_path_factory.mktemp("dist")
    _build(ROOT, target, "--wheel", "--sdist")
    with tarfile.open(next(target.glob("*.tar.gz"))) as sdist:
        sdist.extractall(target / "unpacked", filter="data")
    _build(next((target / "unpacked").iterdir()), target / "again", "--wheel")

    return target


def _wheel(folder: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_three_packages_and_nothing_else(built: Path) -> None:
    """Every file of the three import packages ships, and no test, config or document does."""
    with _wheel(built) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert shipped == _in_tree()


@pytest.mark.parametrize("package", PACKAGES.values())
def test_each_package_is_typed(built: Path, package: str) -> None:
    """Type checkers read our annotations, since each package ships its marker file."""
    with _wheel(built) as wheel:
        assert f"{package}/py.typed" in wheel.namelist()


def test_the_command_and_the_licence_are_installed(built: Path) -> None:
    """The wheel declares `td-runtime` as a command and carries the licence's text."""
    with _wheel(built) as wheel:
        names = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        assert "td-runtime = td_runtime.cli:main" in wheel.read(names["entry_points.txt"]).decode()
        assert wheel.read(names["LICENSE"]) == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_tree(built: Path) -> None:
    """Nothing that the wheel needs is missing from the sdist: same names, same contents."""
    with _wheel(built) as tree, _wheel(built / "again") as sdist:
        assert {i.filename: i.CRC for i in tree.infolist()} == {
            i.filename: i.CRC for i in sdist.infolist()
        }


def test_the_sdist_can_be_worked_on(built: Path) -> None:
    """The sdist carries what `make` needs, so that it can be built and tested from there."""
    unpacked = next((built / "unpacked").iterdir())
    expected = ["Makefile", "constraints.txt", "LICENSE", "README.md", "tests", "configs", "docs"]

    assert [name for name in expected if not (unpacked / name).exists()] == []


def test_the_sdist_holds_nothing_that_was_installed_or_built(built: Path) -> None:
    """No npm package, no byte code and no environment is swept into the sdist."""
    unpacked = built / "unpacked"
    unwanted = {"node_modules", "__pycache__", ".venv", ".mypy_cache"}

    assert [p for p in unpacked.rglob("*") if unwanted & set(p.relative_to(unpacked).parts)] == []
