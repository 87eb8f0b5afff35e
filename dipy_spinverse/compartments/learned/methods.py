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
    optimizer_named,
)
from dipy_spinverse.compartments.learned.ridge import RidgeRegression
from dipy_spinverse.compartments.learned.trees import BoostedTrees

LEARNERS: dict[str, type[Learner]] = {
    "mixture-density": MixtureDensityNetwork,
    "deep": DeepNetwork,
    "wide-and-deep": WideAndDeepNetwork,
    "trees": BoostedTrees,
    "ridge": RidgeRegression,
}
METHODS = tuple(LEARNERS)


def check_options(method: str, options: dict[str, Any]) -> None:
    """Refuse what training would, before anything is simulated.

    Raises
    ------
    ValueError
        Unknown methods, optimisers and options; scikit-learn is missing.
    """
    if method not in LEARNERS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}.")
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
    if "optimizer" in options:
        optimizer_named(options["optimizer"])
