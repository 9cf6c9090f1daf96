"""A user's folder with packages named like Redline's: one line says what shadows what, before anything else fails."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import redline_start

ROOT = redline_start.HERE
NAMES = ("hw", "sim", "host", "benchmarks")


def python(code: str, folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Python says to code that is run in a folder."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environment}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def own(folder: Path, *names: str) -> Path:
    """A folder with packages of these names."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("MINE = True\n")
    return folder


@pytest.mark.parametrize("names", [("hw",), ("sim",), ("host",), ("hw", "sim", "host", "benchmarks")])
def test_one_line_says_what_shadows_what_and_how_to_go_on(names: tuple[str, ...], tmp_path: Path) -> None:
    done = python("import redline", own(tmp_path, *names))
    line = done.stderr.splitlines()[-1]
    for name in names:
        assert (f"'{name}' by {tmp_path / name}" in line) == (name != "benchmarks")
    assert re.search(r"^ImportError: Redline's packages are shadowed: .*Rename .*python -P", line)


def test_a_module_of_the_name_and_a_package_that_is_imported_already_are_found_too(tmp_path: Path) -> None:
    (tmp_path / "sim.py").write_text("")
    assert f"'sim' by {tmp_path / 'sim.py'}" in python("import redline", tmp_path).stderr
    done = python("import sys, hw; sys.path.remove(''); import redline", own(tmp_path, "hw"), PYTHONPATH=str(ROOT))
    assert f"'hw' by {tmp_path / 'hw'}" in done.stderr


def test_the_command_says_it_in_one_line_and_nothing_else(tmp_path: Path) -> None:
    done = python("import redline_start; redline_start.main()", own(tmp_path, *NAMES))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: Redline's packages are shadowed: 'hw' by .*\n", done.stderr)


@pytest.mark.parametrize(
    ("flags", "names"), [(("-P",), NAMES), ((), ("benchmarks",)), ((), ())], ids=["-P", "benchmarks", "none"]
)
def test_what_does_not_come_first_does_not_matter(
    flags: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    # A folder without __init__.py is no package where there is one.
    (tmp_path / "hw").mkdir(exist_ok=True) if "hw" not in names else None
    code = "import redline_start; redline_start.check(); import hw.errors, sim, host; print('all ours')"
    done = python(code, own(tmp_path, *names), *flags)
    assert (done.stdout, done.stderr) == ("all ours\n", "")


def test_a_package_that_is_gone_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "redline_start.py", tmp_path)
    own(tmp_path, "hw")
    done = python("import redline_start; redline_start.check()", tmp_path, PYTHONPATH="")
    # The development environment's finder may know where ours are.
    assert "'sim', 'host' is missing from" in done.stderr or "'sim' by" in done.stderr


# -- the wheel


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported(path: Path) -> set[str]:
    """First names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def canonical(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def test_whatever_the_packages_import_is_declared() -> None:
    declared = project()
    extras = declared["optional-dependencies"]
    assert isinstance(extras, Mapping)
    names = {
        canonical(each)
        for group in (declared["dependencies"], *(value for key, value in extras.items() if key != "dev"))
        for each in group
    }
    providers = importlib.metadata.packages_distributions()
    files = [path for name in redline_start.PACKAGES for path in (ROOT / name).rglob("*.py")]
    used = set().union(*(imported(path) for path in files)) - sys.stdlib_module_names - {*redline_start.PACKAGES}
    missing = {name for name in used if name in providers and not names & {canonical(each) for each in providers[name]}}
    # The runner of the benches, which only developers have.
    assert missing == {"cocotb_test"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: setuptools leaves a build folder in what it builds.
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "tests", "runs", "data", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "-w", folder, folder / "source"], check=True, timeout=300)
    (built,) = folder.glob("redline-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_three_packages_and_two_modules(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    first = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert first == {"hw", "sim", "host", "redline.py", "redline_start.py"}
    sources = {
        str(path.relative_to(ROOT))
        for name in redline_start.PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)


@pytest.mark.slow
def test_the_wheel_works_or_says_what_is_wrong_from_a_folder_with_packages_of_the_same_names(
    wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    venv.create(home, with_pip=False)
    site = Path(subprocess.run([home / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])"],
                               capture_output=True, text=True, check=True).stdout.strip())  # fmt: skip
    # The heavy packages are those of this environment; of Redline only the wheel is found.
    heavy = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "heavy.pth").write_text("".join(f"{path}\n" for path in heavy))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", home / "bin" / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--force-reinstall", wheel], check=True, timeout=300)

    env = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [home / "bin" / command[0], *command[1:]], cwd=folder, env={**env, **more}, capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip

    folder = tmp_path / "project"
    folder.mkdir()
    own(folder, *NAMES)
    where = "import redline, hw, sim, host; print(hw.__file__)"
    said = run("python", "-P", "-c", where)
    assert said.stdout == f"{site / 'hw' / '__init__.py'}\n", said.stderr
    # A script's or an interpreter's own folder comes first: it is said.
    assert run("python", "-c", "import redline").stderr.splitlines()[-1].startswith(
        f"ImportError: Redline's packages are shadowed: 'hw' by {folder / 'hw'}"
    )  # fmt: skip
    # The command's does not: it works, with what it starts.
    checked = run("redline", "verify", "--cases", "2", "--devices", "reference,emulator,simulation", "--seed", "1")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Unless it is told to look there.
    told = run("redline", "verify", PYTHONPATH=".")
    assert (told.returncode, told.stdout) == (1, "")
    assert re.fullmatch(r"error: Redline's packages are shadowed: .*\n", told.stderr)
    assert run("redline", "bench", "--help").returncode == 0
