"""The learners by name."""

from __future__ import annotations

from importlib.util import find_spec
from inspect import signature
from typing import Any

from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.compartments.learned.networks import (
    DeepNetwork,
    MixtureDensityNetwork,
    WideAndDeepNetwork,
)
from dipy_spinverse.compartments.learned.scikit_learners import BoostedTrees, RidgeRegression

LEARNERS: dict[str, type[Learner]] = {
    "mixture-density": MixtureDensityNetwork,
    "deep": DeepNetwork,
    "wide-and-deep": WideAndDeepNetwork,
    "trees": BoostedTrees,
    "ridge": RidgeRegression,
}


def check_options(method: str, options: dict[str, Any]) -> None:
    """ValueError for what training would refuse, before anything is simulated."""
    if method not in LEARNERS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(LEARNERS)}.")
    if method in ("trees", "ridge") and find_spec("sklearn") is None:
        raise ValueError(
            f"method={method!r} needs scikit-learn (pip install scikit-learn); networks do not."
        )
    available = set(signature(LEARNERS[method].train).parameters) - {"features", "targets", "seed"}
    if not set(options) <= available:
        raise ValueError(
            f"{method} has no options {sorted(set(options) - available)}; it has "
            f"{sorted(available)}."
        )
