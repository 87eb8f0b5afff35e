"""The demo, the README's example and those of CONTRIBUTING run as they stand."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "examples" / "contributing"


@pytest.mark.filterwarnings("ignore:The acquisition tells nearly nothing")
@pytest.mark.parametrize("path", sorted(CONTRIBUTING.glob("*.py")), ids=lambda path: path.stem)
def test_examples_of_contributing_find_what_they_assert(path, monkeypatch):
    assert re.search(r"^ *assert ", path.read_text(), re.MULTILINE)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.slow
def test_demo_writes_a_picture_and_the_readme_example_runs_on_its_files(tmp_path):
    demo = [sys.executable, ROOT / "examples" / "demo.py", "demo_output"]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "NaN sample" in done.stdout
    assert (tmp_path / "demo_output" / "demo.png").stat().st_size > 0
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    assert (tmp_path / "walls.vtu").stat().st_size > 0


@pytest.mark.slow
def test_the_comparison_writes_its_table_and_pictures(tmp_path):
    script = [sys.executable, ROOT / "examples" / "compare_models.py", tmp_path]
    subprocess.run(script, capture_output=True, text=True, check=True)
    assert "ActiveAx" in (tmp_path / "comparison.md").read_text()
    for name in ("comparison.png", "glyphs.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_tissue_fractions_of_a_small_slice_are_drawn(tmp_path, monkeypatch, capsys):
    script = str(ROOT / "examples" / "tissue_fractions.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), "--quick"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    errors = [float(number) for number in re.findall(r"mean error (0\.\d+),", printed)]
    # Noise alone leaves 0.01.
    assert len(errors) == 3 and max(errors) < 0.03
    assert (tmp_path / "tissue_fractions.png").stat().st_size > 0


def test_the_shape_of_a_cell_is_found_from_its_signals(tmp_path, monkeypatch, capsys):
    script = str(ROOT / "examples" / "cell_shapes.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), "--quick"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    start, coarse, found = (float(x) for x in re.findall(r"vertices (\d+\.\d+) um", printed))
    # 150 measurements leave 0.23; a straight cylinder is 0.8 off
    assert found < 0.35 and found < start / 2
    for name in ("cell_shapes.png", "cell.ply"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("plot_*.py")), ids=lambda p: p.stem
)
def test_tutorials_run(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
