"""Pages of the documentation: their local links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def test_every_map_and_every_command_is_explained():
    words, commands = (ROOT / "doc" / f"{name}.md" for name in ("words", "commands"))
    assert {name for name in MAP_DESCRIPTIONS if f"`{name}`" not in words.read_text()} == set()
    for program in cli.COMMANDS:
        assert f"## {program}\n" in commands.read_text()
