"""Which measurements have the same signal, whatever the substrate."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition import Acquisition


def unique_encodings(acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Measurements that differ in timing or in q (up to sign), the only ones to simulate.

    Returns
    -------
    representatives : ndarray (U,)
        Index of one measurement of each kind.
    encoding : ndarray (M,)
        The kind of each measurement.
    """
    q = acquisition.q_vectors.round(9) + 0.0
    first_nonzero = np.argmax(q != 0, axis=1)
    q *= np.sign(np.take_along_axis(q, first_nonzero[:, None], axis=1))
    keys = np.column_stack([acquisition.timing_index, q + 0.0])
    _, representatives, encoding = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return representatives, encoding.ravel()
