"""Pages of the documentation: their local links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from compartment_cases import directions

from benchmarks.published_noddi import published_signals, tissue
from dipy_spinverse import Acquisition
from dipy_spinverse.report.descriptions import MAP_DESCRIPTIONS
from dipy_spinverse.workflows import cli

ROOT = Path(__file__).parents[1]
BUILT = ("auto_examples/index.rst",)  # by `make docs`
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("doc/*.md"), ROOT / "benchmarks" / "README.md",
     *ROOT.glob("benchmarks/notes/*.md")]
)  # fmt: skip
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(path):
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors_of(path):
    """Anchors of headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_to_files_and_headings(page):
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link) or link in BUILT:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors_of(path), f"{page.name} links to {link}: no such heading"


def test_files_that_code_and_pages_name_exist():
    folders = ("benchmarks", "doc", "tests", "examples", "dipy_spinverse")
    named = re.compile(
        rf"(?<![\w/.-])((?:{'|'.join(folders)})/[\w./-]*\.(?:md|py|png|toml|npz|bib))\b"
    )
    sources = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    for path in [*sources, *PAGES, ROOT / "Makefile", ROOT / "setup.cfg"]:
        missing = {n for n in named.findall(path.read_text()) if not (ROOT / n).exists()}
        assert not missing, f"{path.relative_to(ROOT)} names {missing}"


def test_every_map_and_every_command_is_explained():
    words, commands = (ROOT / "doc" / f"{name}.md" for name in ("words", "commands"))
    assert {name for name in MAP_DESCRIPTIONS if f"`{name}`" not in words.read_text()} == set()
    for program in cli.COMMANDS:
        assert f"## {program}\n" in commands.read_text()


def test_code_for_users_of_other_packages_runs():
    """The blocks of this package, on voxels of published NODDI with two sets of directions."""
    text = (ROOT / "doc" / "from_other_packages.md").read_text()
    blocks = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if "import amico" not in block and "from dmipy" not in block
    ]
    b, truth = np.repeat([0.0, 1.0, 2.0], [4, 30, 30]), tissue(3)
    gtab = Acquisition(b, directions(64), small_delta=10, big_delta=30)
    data = published_signals(b, gtab.directions, truth)
    names = {"gtab": gtab, "data": data, "mask": np.ones(3)}
    exec(blocks[0], names)
    np.testing.assert_allclose(names["fit"].fwf, truth["fwf"], atol=0.02)  # without noise
    for block in blocks[1:]:
        exec(block, names)
    assert len(blocks) == 4 and names["fit"].fibre_fractions.shape == (3, 3)
    # Peaks in scanner axes, of an image whose axes are turned and whose determinant is positive.
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    affine = np.eye(4)
    affine[:3, :3] = 2 * rotation
    scanner = (truth["axis"] * [-1, 1, 1]) @ rotation.T
    peaks = np.concatenate([0.5 * scanner, np.full((3, 6), np.nan)], axis=1)
    found = names["peaks_of_mrtrix"](peaks, affine).peak_dirs
    np.testing.assert_allclose(found[:, 0], truth["axis"], atol=1e-12)
    assert not found[:, 1:].any()


def test_example_of_gradients_estimates_what_was_simulated():
    text = (ROOT / "doc" / "gradients.md").read_text()
    names: dict = {}
    exec(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0], names)
    # Data without noise: what is left is the optimiser's stopping rule.
    np.testing.assert_allclose(names["unknowns"].detach().exp(), [1.2, 2.4, 0.03], rtol=0.01)
