"""Sphinx configuration: `make docs`."""

import re

project = "dipy_spinverse"
copyright = "2026, the dipy_spinverse developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as links within the repository have them
numpydoc_show_class_members = False
exclude_patterns = ["_build"]
html_theme = "alabaster"


def setup(app):
    app.connect("source-read", _downloads)


def _downloads(app, name, source):
    """Files beside doc/ are no pages of the site: links to them are downloads."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+)[^)]*\)", r"](path:\1)", source[0])
