"""Learning instead of fitting: regressors that a compartment model trains on its own signals."""

from __future__ import annotations

from dipy_spinverse.compartments.learned.model import LearnedModel

__all__ = ["LearnedModel"]
