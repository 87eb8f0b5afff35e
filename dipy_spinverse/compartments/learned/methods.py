"""The methods of learning, by name."""

from __future__ import annotations

from importlib.util import find_spec
from inspect import signature

import numpy as np

from dipy_spinverse.compartments.learned import networks, ridge, trees
from dipy_spinverse.compartments.learned.learner import Learner

_BY_SCIKIT_LEARN = {"trees": trees, "ridge": ridge}
METHODS = ("mixture-density", "deep", "wide-and-deep", *_BY_SCIKIT_LEARN)


def check_options(method: str, options: dict) -> None:
    """Refuse what training would, before anything is simulated.

    Raises
    ------
    ValueError
        Unknown methods, optimisers and options; scikit-learn is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}.")
    if method in _BY_SCIKIT_LEARN and find_spec("sklearn") is None:
        raise ValueError(
            f"method={method!r} needs scikit-learn (pip install scikit-learn); networks do not."
        )
    known = set(signature(_module(method).train).parameters) - {"x", "y", "seed", "method"}
    if not set(options) <= known:
        raise ValueError(
            f"{method} has no options {sorted(set(options) - known)}; it has {sorted(known)}."
        )
    if "optimizer" in options:
        networks.optimizer_named(options["optimizer"])


def train(method: str, x: np.ndarray, y: np.ndarray, seed: int, **options) -> Learner:
    """Learn y (N, T) from x (N, F), both standardised."""
    if method not in _BY_SCIKIT_LEARN:
        options["method"] = method
    return _module(method).train(x, y, seed, **options)


def predict(learner: Learner, x: np.ndarray) -> np.ndarray:
    """Standardised targets (N, T) of a learner without a posterior."""
    return _module(learner.method).predict(learner, x)


def _module(method):
    return _BY_SCIKIT_LEARN.get(method, networks)
