"""A trained learner is its arrays and its settings, nothing else: it is saved as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Learner:
    """From standardised features to standardised targets.

    Attributes
    ----------
    method : str
        Of `LearnedModel`.
    arrays : dict of ndarray
    settings : dict
        Of numbers and strings.
    """

    method: str
    arrays: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)
