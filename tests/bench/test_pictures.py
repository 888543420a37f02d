"""The pictures of the benchmarks' page are drawn from results, and the same from the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench import pictures

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib"
)


@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_each_picture_is_that_of_the_docs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every result that is kept has its picture, and what it draws are figures."""
    pictures.main(["--only", name, "--out", str(tmp_path)])
    assert capsys.readouterr().out.split() == [f"{name}.png", f"{name}.svg"]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    text = (tmp_path / f"{name}.svg").read_text()
    pictures.main(["--only", name, "--out", str(tmp_path)])
    assert (tmp_path / f"{name}.svg").read_text() == text
    assert (pictures.FIGURES / f"{name}.png").exists()


def test_a_missing_result_is_said_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is drawn, and the command that gives the figures is named."""
    pictures.main(["--only", "scale", "--results", str(tmp_path), "--out", str(tmp_path)])
    assert "python -m bench.scale --out" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
