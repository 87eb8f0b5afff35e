"""Boosted regression trees and polynomial ridge regression, trained by scikit-learn."""

from __future__ import annotations

import numpy as np
from numba import njit

from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.voxels.progress import stepwise

_NODE_FIELDS = ("feature_idx", "num_threshold", "left", "right", "is_leaf", "value")


class BoostedTrees(Learner):
    """scikit-learn's HistGradientBoostingRegressor, one for each target, with early stopping."""

    @classmethod
    def train(cls, features, targets, seed, *, learning_rate=0.1, max_iter=300, max_leaf_nodes=31):
        """Fit the trees; options are those of scikit-learn."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        trees, n_trees, baselines = [], [0], []
        for target in stepwise(targets.T):
            booster = HistGradientBoostingRegressor(
                learning_rate=learning_rate,
                max_iter=max_iter,
                max_leaf_nodes=max_leaf_nodes,
                early_stopping=True,
                random_state=seed,
            ).fit(features, target)
            baselines.append(float(np.ravel(booster._baseline_prediction)[0]))
            trees += [tree.nodes for (tree,) in booster._predictors]
            n_trees.append(len(trees))
        nodes = np.concatenate(trees)
        arrays = {name: np.ascontiguousarray(nodes[name]) for name in _NODE_FIELDS}
        roots = np.cumsum([0, *map(len, trees)])[:-1]
        arrays |= {"roots": roots, "n_trees": np.array(n_trees), "baselines": np.array(baselines)}
        return cls(arrays)

    def predict(self, features):
        names = (*_NODE_FIELDS, "roots", "n_trees", "baselines")
        features = np.ascontiguousarray(features, dtype=np.float64)
        return _sum_of_leaves(features, *(self.arrays[name] for name in names))


@njit(cache=True)
def _sum_of_leaves(
    features, feature, threshold, left, right, is_leaf, value, roots, n_trees, baselines
):
    """Targets (N, T); trees n_trees[t] to n_trees[t + 1] are those of target t."""
    n_targets = len(baselines)
    result = np.empty((len(features), n_targets))
    for i in range(len(features)):
        for target in range(n_targets):
            total = baselines[target]
            for tree in range(n_trees[target], n_trees[target + 1]):
                root = roots[tree]
                node = root
                while not is_leaf[node]:
                    goes_left = features[i, feature[node]] <= threshold[node]
                    node = root + (left[node] if goes_left else right[node])
                total += value[node]
            result[i, target] = total
    return result


class RidgeRegression(Learner):
    """Linear combination of polynomials of partial-least-squares components [1]_.

    References
    ----------
    .. [1] Wold, Sjostrom and Eriksson, Chemom. Intell. Lab. Syst. 58 (2001) 109,
       https://doi.org/10.1016/S0169-7439(01)00155-1
    """

    @classmethod
    def train(cls, features, targets, seed, *, degree=3, n_components=14, alpha=1e-3):
        """Fit the regression, with the penalty `alpha` on the coefficients, per sample.

        At most `n_components` are used: a polynomial of all features would have too many terms.
        The seed has no effect, as the solution is unique.
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
