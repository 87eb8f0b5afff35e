"""Errors that measurements share, as that of S0, beside the independent ones."""

from __future__ import annotations

import numpy as np


def whitening(errors: np.ndarray) -> np.ndarray:
    """Symmetric matrix (M, M) after which data have independent errors of variance 1.

    Parameters
    ----------
    errors : ndarray (k, M)
        What each shared error changes by one standard deviation, of data that have independent
        errors of variance 1 beside.
    """
    directions, size, _ = np.linalg.svd(errors.T, full_matrices=False)
    less = 1 - 1 / np.sqrt(1 + size**2)
    return np.eye(errors.shape[1]) - (directions * less) @ directions.T


def most_probable_errors(errors: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Shared errors (k,), in standard deviations, that a residual (M,) tells."""
    return np.linalg.solve(np.eye(len(errors)) + errors @ errors.T, errors @ residual)
