"""Polynomial ridge regression, of the combinations of features that matter to the targets."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.compartments.learned.learner import Learner


def train(x: np.ndarray, y: np.ndarray, seed: int, *, degree=3, n_components=14, alpha=1e-3):
    """Polynomials of partial-least-squares components [1]_.

    Parameters
    ----------
    x : ndarray (N, F)
    y : ndarray (N, T)
    seed : int
        Not used: the solution is unique.
    degree : int, optional
    n_components : int, optional
        At most; a polynomial of all features would have too many terms.
    alpha : float, optional
        Penalty on coefficients, for each sample.

    References
    ----------
    .. [1] Wold, Sjostrom and Eriksson, Chemom. Intell. Lab. Syst. 58 (2001) 109,
       https://doi.org/10.1016/S0169-7439(01)00155-1
    """
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.linear_model import Ridge

    n = min(n_components, x.shape[1])
    # Squares of the features take part: directions that matter only beyond first order count.
    loadings = PLSRegression(n, scale=False).fit(x, np.hstack([y, y**2])).x_rotations_
    scores = x @ loadings
    loadings = loadings / scores.std(axis=0)
    terms = _terms(x @ loadings, degree)
    ridge = Ridge(alpha=alpha * len(x)).fit(terms, y)
    arrays = {"loadings": loadings, "weights": ridge.coef_, "offset": ridge.intercept_}
    return Learner("ridge", arrays, {"degree": degree})


def predict(learner: Learner, x: np.ndarray) -> np.ndarray:
    """Targets (N, T)."""
    a = learner.arrays
    return _terms(x @ a["loadings"], learner.settings["degree"]) @ a["weights"].T + a["offset"]


def _terms(scores, degree):
    from sklearn.preprocessing import PolynomialFeatures

    return PolynomialFeatures(degree, include_bias=False).fit_transform(scores)
