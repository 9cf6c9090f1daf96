"""The version, asked for in every usual way."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import redline
from host.cli import app
from host.version import version


def test_the_package_and_the_command_line_say_the_same() -> None:
    for arguments in (["--version"], ["version"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0
        assert result.output.strip() == redline.__version__ == version()


def test_a_source_folder_knows_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    project = tmp_path / "pyproject.toml"
    assert version(project) == "0+unknown"
    project.write_text('[project]\nname = "redline"\nversion = "1.2.3"\n')
    assert version(project) == "1.2.3+source"
