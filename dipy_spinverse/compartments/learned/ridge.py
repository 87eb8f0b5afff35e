"""Polynomial ridge regression on partial-least-squares components of the features."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.compartments.learned.learner import Learner


class RidgeRegression(Learner):
    """Linear combination of polynomials of partial-least-squares components [1]_.

    References
    ----------
    .. [1] Wold, Sjostrom and Eriksson, Chemom. Intell. Lab. Syst. 58 (2001) 109,
       https://doi.org/10.1016/S0169-7439(01)00155-1
    """

    @classmethod
    def train(cls, features, targets, seed, *, degree=3, n_components=14, alpha=1e-3):
        """Fit the regression.

        Parameters
        ----------
        features : ndarray (N, F)
        targets : ndarray (N, T)
        seed : int
            Not used: the solution is unique.
        degree : int, optional
        n_components : int, optional
            Upper limit; a polynomial of all features would have too many terms.
        alpha : float, optional
            Penalty on the coefficients, per sample.
        """
        from sklearn.cross_decomposition import PLSRegression
        from sklearn.linear_model import Ridge

        pls = PLSRegression(min(n_components, features.shape[1]), scale=False)
        # With squares of the targets, directions that matter only beyond first order count, too.
        loadings = pls.fit(features, np.hstack([targets, targets**2])).x_rotations_
        loadings = loadings / (features @ loadings).std(axis=0)
        terms = _polynomial_terms(features @ loadings, degree)
        ridge = Ridge(alpha=alpha * len(features)).fit(terms, targets)
        arrays = {"loadings": loadings, "weights": ridge.coef_, "offset": ridge.intercept_}
        return cls(arrays, {"degree": degree})

    def predict(self, features):
        terms = _polynomial_terms(features @ self.arrays["loadings"], self.settings["degree"])
        return terms @ self.arrays["weights"].T + self.arrays["offset"]


def _polynomial_terms(scores, degree):
    from sklearn.preprocessing import PolynomialFeatures

    return PolynomialFeatures(degree, include_bias=False).fit_transform(scores)
