"""Sphinx configuration: python -m sphinx doc doc/_build."""

project = "dipy_spinverse"
copyright = "2026, the dipy_spinverse developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
myst_enable_extensions = ["dollarmath"]
numpydoc_show_class_members = False
exclude_patterns = ["_build"]
html_theme = "alabaster"
