"""Noisy data, condensed to what a few of the measurements predict of all."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np
from scipy.linalg import qr

from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.labelled import LabelledCells, Target
from dipy_spinverse.cell_search.shared_errors import whitening
from dipy_spinverse.voxels.rician import rician_mean

_RIDGE = 0.05  # error of the regression that it need not explain, in units of the noise
_LIFT_ROUNDS = 3  # until what noise lifts the mean of magnitudes changes no more


class LinearPrediction:
    """All measurements, in units of the noise, as linear functions of a few.

    Parameters
    ----------
    simulator : PartialVolumeSimulator
        Of all measurements.
    examples : ndarray (N, M)
        Signals of random cells, over which the function is fitted.
    sigma : ndarray (M,)
    number : int
        Of the few, about.
    ridge : float, optional
        Error that need not be explained, in units of the noise.

    Attributes
    ----------
    rows : ndarray (n,)
        The few.
    slopes, constant : ndarray (n, M), (M,)
    """

    def __init__(self, simulator, examples, sigma, number, ridge=_RIDGE):
        mean = examples.mean(axis=0)
        scaled = (examples - mean) / sigma
        order = qr(scaled, mode="r", pivoting=True)[1]
        self.rows = rows = simulator.fill_registers(order, number)
        part = scaled[:, rows]
        system = part.T @ part + len(part) * ridge**2 * np.eye(len(rows))
        self.slopes = np.linalg.solve(system, part.T @ scaled) / sigma[rows, None]
        self.constant = mean / sigma - mean[rows] @ self.slopes


class CondensedTarget(Target):
    """Noisy data of which only a few measurements are simulated.

    All measurements are nearly a linear function of a few. That makes their likelihood one of
    these few, as exact as the function: each simulation costs less, and no measurement is lost.

    Parameters
    ----------
    complete : Target
        With all measurements.
    simulator_of : callable
        Makes the simulator of some of the measurements, given their indices.
    examples : ndarray (N, M)
        Signals of random cells, over which the function is fitted.
    number : int
        Of measurements to be simulated, about.
    ridge : float, optional
        Error of the function that it need not explain, in units of the noise.
    shared : ndarray (k, M), optional
        What errors that measurements share change by one standard deviation each.
    """

    def __init__(
        self,
        complete: Target,
        simulator_of: Callable[[np.ndarray], PartialVolumeSimulator],
        examples: np.ndarray,
        number: int,
        ridge: float = _RIDGE,
        shared: np.ndarray | None = None,
    ):
        self.complete = complete
        foretold = LinearPrediction(complete.simulator, examples, complete.sigma, number, ridge)
        self.rows = rows = foretold.rows
        # In units of the noise, from signals.
        self._slopes, self._constant = foretold.slopes, foretold.constant
        self._root = np.linalg.cholesky(self._slopes @ self._slopes.T)
        self._whitening = np.eye(len(rows))
        nothing = np.zeros(len(rows))
        super().__init__(simulator_of(rows), nothing, nothing + 1, nothing)
        lift = 0.0
        for _ in range(_LIFT_ROUNDS):
            signals = np.linalg.solve(self._root.T, self._condensed(lift))
            signals = (self._predicted(signals) * complete.sigma).clip(0)
            lift = (rician_mean(signals, complete.rician) - signals) / complete.sigma
        self.shared = np.zeros((0, len(complete.data))) if shared is None else shared
        self.shared = self.shared / complete.sigma
        condensed = np.linalg.solve(self._root, self._slopes @ self.shared.T).T
        self._whitening = whitening(condensed)
        self.data = self._condensed(lift)

    def _predicted(self, signals):
        return self._constant + signals @ self._slopes

    def _condensed(self, error):
        """The data, after an error (M,) of their prediction in units of the noise is removed."""
        rest = self.complete.data / self.complete.sigma - error - self._constant
        return self._whitening @ np.linalg.solve(self._root, self._slopes @ rest)

    def exact_at(self, cells: LabelledCells) -> CondensedTarget:
        """The same, but exact for these cells and the more so for those like them."""
        signals = self.complete.simulate(cells.labels[None], cells.leaks[None])[0]
        return self.exact_for(signals, signals[self.rows])

    def exact_for(self, signals: np.ndarray, simulated: np.ndarray) -> CondensedTarget:
        """The same, but exact for cells of these signals (M,), and the more so for their like.

        What is simulated (n,) of them may differ from them, too, as that on a coarser grid.
        """
        exact = self.complete.expected(signals)
        result = copy(self)
        result.data = self._condensed(exact - self._predicted(simulated))
        return result

    def foretold_change(self, change: np.ndarray) -> np.ndarray:
        """Changes (M,) of all signals, of changes (n,) of those that are simulated."""
        return change @ self._slopes * self.complete.sigma

    def linear(self, share: np.ndarray, leaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the data (n,), and its derivatives (n, T + 2)."""
        signals, *jacobian = self.simulator.partial_sensitivities(share, leaks)
        return self.expected(signals), self._whitening @ self._root.T @ np.hstack(jacobian)

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Mean of the condensed data, given signals (N, n) without noise."""
        return signals @ self._root @ self._whitening
