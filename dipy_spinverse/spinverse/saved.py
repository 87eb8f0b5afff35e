"""Priors and stages as JSON holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from dipy_spinverse.inversion import Binarisation, Continuity, Manifoldness, Stage, WallArea

_PRIORS = {prior.__name__: prior for prior in (Binarisation, Continuity, Manifoldness, WallArea)}


def priors_to_json(priors: Sequence) -> list:
    """Names and parameters of the package's own priors."""
    for prior in priors:
        if type(prior) not in _PRIORS.values():
            raise ValueError(f"priors has {prior!r}, which cannot be saved; use {list(_PRIORS)}.")
    return [[type(prior).__name__, asdict(prior)] for prior in priors]


def priors_from_json(pairs: Sequence) -> tuple:
    """Priors of `priors_to_json`."""
    return tuple(_PRIORS[name](**parameters) for name, parameters in pairs)


def stage_to_json(stage: Stage) -> dict:
    """Fields of a stage."""
    return {**vars(stage), "priors": priors_to_json(stage.priors)}


def stage_from_json(stage: dict) -> Stage:
    """The stage of `stage_to_json`."""
    times, priors = stage["diffusion_times"], priors_from_json(stage["priors"])
    times = None if times is None else tuple(times)
    return Stage(**{**stage, "diffusion_times": times, "priors": priors})
