"""helper_tools/make_screenshots.py, and the pictures that it made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helper_support import Tool, helper_module

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
MOST_BYTES = 300_000


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    return Tool("make_screenshots", capfd)


def test_its_help_has_examples(tool: Tool) -> None:
    said = tool("--help")
    assert said.code == 0
    assert "examples:" in said.out
    assert "--output" in said.out


def test_a_dry_run_names_the_pictures_and_makes_none(tool: Tool, tmp_path: Path) -> None:
    said = tool("--dry-run", "--output", tmp_path / "pictures")
    assert said.code == 0
    assert str(tmp_path / "pictures" / "hub-dark.png") in said.out
    assert not (tmp_path / "pictures").exists()


def test_a_missing_browser_is_one_clear_line(tool: Tool) -> None:
    said = tool.fails(1, "--browser", "/no/such/browser")
    assert "/no/such/browser" in said
    assert "--browser FILE" in said


def test_the_picture_of_the_terminal_loads_nothing_from_elsewhere() -> None:
    drawn = helper_module("make_screenshots").terminal_picture("\x1b[1mMLX Router\x1b[0m\n")
    assert "MLX" in drawn
    assert "url(http" not in drawn
    assert "@font-face" not in drawn


def test_the_pictures_are_there_and_small() -> None:
    for name in helper_module("make_screenshots").PICTURES:
        assert 1_000 < (IMAGES / name).stat().st_size < MOST_BYTES, name
