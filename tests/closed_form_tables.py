"""Tables of packed cells in closed form, which take no simulation."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.tables.signal_table import (
    LEAKLESS,
    N_Q,
    coordinate_range,
    relative_q,
    table_of_simulations,
)
from dipy_spinverse.packed_cells.tables.two_pools import two_pool_signal


def closed_form_table(shape, timings, q_max, diffusivity=2.0):
    """A table of the two-pool form."""
    lower, upper = coordinate_range(shape)
    coordinates = lower + (upper - lower) * np.random.default_rng(0).random((100, 3))
    q = (q_max[:, None] * relative_q()).ravel()
    small, big = np.repeat(timings, N_Q, axis=0).T
    parameters = coordinates.copy()
    parameters[:, 0] = np.exp(coordinates[:, 0])
    parameters[:, 2] = np.exp(coordinates[:, 2]) - LEAKLESS
    signals = two_pool_signal(shape, parameters, q, small, big, diffusivity)
    return table_of_simulations(
        shape, timings, q_max, diffusivity, coordinates, np.stack([signals] * 2)
    )
