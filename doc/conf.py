"""Sphinx configuration: `make docs`."""

import re
import sys
from pathlib import Path

DOC = Path(__file__).parent
sys.path.insert(0, str(DOC))

from command_reference import reference  # noqa: E402
from gallery import run_pattern  # noqa: E402

project = "dipy_spinverse"
copyright = "2026, the dipy_spinverse developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as links within the repository have them
numpydoc_show_class_members = False
autosummary_generate = True  # one page for each class and function of api.md
templates_path = ["templates"]
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80  # else one parameter a line
python_use_unqualified_type_names = True
# As they are written, not as the unions of protocols that they stand for.
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "NDArray": "NDArray", "Tensor": "Tensor"}
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2, "logo": {
    "text": "dipy_spinverse"}}  # fmt: skip
html_show_sourcelink = False
html_sidebars = {"*": []}  # but in the gallery
html_static_path = ["static"]
html_css_files = ["wide.css"]
smartquotes = False  # options begin with two dashes
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": run_pattern(),
    "ignore_pattern": "^(?!plot_)",
    "within_subsection_order": "gallery.InOrder",
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
}


def setup(app):
    app.connect("builder-inited", _commands)
    app.connect("source-read", _downloads)


def _commands(app):
    """The pages of commands, from the workflows."""
    text, path = reference(), DOC / "commands.md"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _downloads(app, name, source):
    """Files beside doc/ are no pages of the site: links to them are downloads."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+)[^)]*\)", r"](path:\1)", source[0])
