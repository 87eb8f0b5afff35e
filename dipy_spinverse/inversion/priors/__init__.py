"""Priors: penalties on wall fields, in units of -ln(probability).

Each is a small frozen dataclass with a `weight` and two methods on wall strengths w = 1 - s of
V fields: ``value(grid, walls)`` (V,) and ``gauss_newton_weight(grid, walls)`` (V, F), a positive
diagonal that stands in for its curvature. `evaluate_priors` adds up several priors.
"""

from dipy_spinverse.inversion.priors.binarisation import Binarisation
from dipy_spinverse.inversion.priors.continuity import Continuity
from dipy_spinverse.inversion.priors.evaluate import evaluate_priors
from dipy_spinverse.inversion.priors.manifoldness import Manifoldness
from dipy_spinverse.inversion.priors.wall_area import WallArea

__all__ = ["Binarisation", "Continuity", "Manifoldness", "WallArea", "evaluate_priors"]
