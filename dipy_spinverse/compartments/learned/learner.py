"""The base class of learners, and the scaling of their features and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, eq=False)
class Learner(ABC):
    """A regression from standardised features (N, F) to standardised targets (N, T).

    A trained learner is nothing but its arrays and settings (numbers), and is stored as these.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @abstractmethod
    def train(cls, features: np.ndarray, targets: np.ndarray, seed: int, **options: Any) -> Self:
        """Fit the regression; subclasses name their options."""

    @abstractmethod
    def predict(self, features: np.ndarray) -> np.ndarray:
        """Expected targets (N, T)."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean, standard deviation and range (F,) of each column of a training set."""

    mean: np.ndarray
    sd: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Scaling:
        """Scaling of a training set (N, F)."""
        sd = values.std(axis=0, dtype=float)
        sd = np.where(sd > 1e-9, sd, 1.0)  # constant columns
        mean = values.mean(axis=0, dtype=float)
        return cls(mean, sd, values.min(axis=0), values.max(axis=0))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Values of mean 0 and standard deviation 1, clipped to the range of the training set.

        Beyond that range polynomials and networks would extrapolate.
        """
        return (values.clip(self.minimum, self.maximum) - self.mean) / self.sd

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`standardised`, within the range of the training set."""
        return (values * self.sd + self.mean).clip(self.minimum, self.maximum)
