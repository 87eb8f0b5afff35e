"""Boosted regression trees."""

from __future__ import annotations

import numpy as np
from numba import njit

from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.voxels.progress import stepwise

_FIELDS = ("feature_idx", "num_threshold", "left", "right", "is_leaf", "value")


def train(
    x: np.ndarray, y: np.ndarray, seed: int, *, learning_rate=0.1, max_iter=300, max_leaf_nodes=31
):
    """scikit-learn's HistGradientBoostingRegressor, one for each target, with early stopping.

    Parameters
    ----------
    x : ndarray (N, F)
    y : ndarray (N, T)
    seed : int
    learning_rate, max_iter, max_leaf_nodes : optional
        As scikit-learn's.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees, first, of_target, base = [], [], [0], []
    n_nodes = 0
    for target in stepwise(y.T):
        booster = HistGradientBoostingRegressor(
            learning_rate=learning_rate,
            max_iter=max_iter,
            max_leaf_nodes=max_leaf_nodes,
            early_stopping=True,
            random_state=seed,
        ).fit(x, target)
        base.append(float(np.ravel(booster._baseline_prediction)[0]))
        for (tree,) in booster._predictors:
            trees.append(tree.nodes)
            first.append(n_nodes)
            n_nodes += len(tree.nodes)
        of_target.append(len(first))
    nodes = np.concatenate(trees)
    arrays = {name: np.ascontiguousarray(nodes[name]) for name in _FIELDS}
    arrays |= {"first": np.array(first), "of_target": np.array(of_target), "base": np.array(base)}
    return Learner("trees", arrays)


def predict(learner: Learner, x: np.ndarray) -> np.ndarray:
    """Targets (N, T)."""
    a = learner.arrays
    x = np.ascontiguousarray(x, dtype=np.float64)
    return _walk(x, *(a[name] for name in _FIELDS), a["first"], a["of_target"], a["base"])


@njit(cache=True)
def _walk(x, feature, threshold, left, right, is_leaf, value, first, of_target, base):
    n_targets = len(base)
    result = np.empty((len(x), n_targets))
    for i in range(len(x)):
        for target in range(n_targets):
            total = base[target]
            for tree in range(of_target[target], of_target[target + 1]):
                start = first[tree]
                node = start
                while not is_leaf[node]:
                    below = x[i, feature[node]] <= threshold[node]
                    node = start + (left[node] if below else right[node])
                total += value[node]
            result[i, target] = total
    return result
