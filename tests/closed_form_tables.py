"""Tables of packed cells in closed form, which take no simulation."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.tables.signal_table import coordinate_range, table_of_simulations


def closed_form_table(setting):
    """A table of the two-pool form."""
    lower, upper = coordinate_range(setting.shape)
    coordinates = lower + (upper - lower) * np.random.default_rng(0).random((100, 3))
    signals = setting.closed_form(coordinates)
    return table_of_simulations(setting, coordinates, np.stack([signals, signals]))
