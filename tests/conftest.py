"""What all tests share: tables of packed cells that take no minutes to simulate."""

from __future__ import annotations

import pytest
from closed_form_tables import closed_form_table

from dipy_spinverse.packed_cells.tables import cache


@pytest.fixture(scope="session", autouse=True)
def tables_in_closed_form(tmp_path_factory):
    """Tables are built from the closed form, and kept away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cache, "build_signal_table", closed_form_table)
        yield
