"""Files, figures and pages of a fit."""

from importlib.util import find_spec


def check_packages() -> None:
    """ImportError that says how to install what a page needs, where it is missing."""
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"report needs {' and '.join(missing)}: pip install dipy_spinverse[report]."
        )
