"""What tests of packed cells share."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def assert_derivatives_are_differences(model, tissue, n):
    """Of signals at n places of a class, by each of its parameters."""
    z = np.random.default_rng(0).uniform(-1, 1, size=(n, tissue.n_parameters))
    if tissue.turns:
        z[:, -3:] = 0
    frames = Rotation.random(n, random_state=0).as_matrix()
    _, jacobian = model(tissue, z, frames, slopes=True)
    step = 1e-5
    for k in range(tissue.n_parameters):
        change = step * (np.arange(tissue.n_parameters) == k)
        ends = [model(tissue, z + s * change, frames) for s in (1, -1)]
        # Central differences: rounding 1e-12 over the step, squares of the step.
        np.testing.assert_allclose(jacobian[:, k], (ends[0] - ends[1]) / (2 * step), atol=1e-6)
