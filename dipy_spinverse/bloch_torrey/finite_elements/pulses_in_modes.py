"""Pairs of pulses in the span of a few Laplace modes: signals, and what they depend on.

Along a direction n the magnetisation in the modes obeys dv/dt = -(L + i g X_n) v during a pulse,
with L the rates and X_n the positions along n between modes, and a signal is

    S = sum_k exp(-L_k (Delta - delta)) |v_k(delta)|^2.

A pulse is stepped in the eigenvectors of X_n, where its phases are diagonal, by symmetric
splitting and one extrapolation [1]_. As the operator is symmetric, the same steps carry the
adjoint state backward.

References
----------
.. [1] Chin, "Multi-product splitting and Runge-Kutta-Nystrom integrators", Celest. Mech. Dyn.
   Astr. 106 (2010), https://doi.org/10.1007/s10569-010-9255-9
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import jv

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.sweep import real_product

_BETWEEN = 1e-4  # of signals between the wave numbers that are propagated, at most
_SAME_DIRECTION = 7  # decimals
_BOOLE = np.array([28.0, 64.0, 24.0, 64.0]) / 45  # of steps, from one panel to the next
_LARGEST_BYTES = 2**24  # of the products of states of one part of the directions


@dataclass(frozen=True, eq=False)
class PulseGroup:
    """Measurements of one pulse duration, as rays of D directions at Q wave numbers.

    Attributes
    ----------
    small_delta : float
        ms.
    directions : ndarray (D, 3)
    q : ndarray (D, Q)
        That are propagated, rad/um.
    pauses : ndarray (T,)
        Delta - delta, ms.
    rows, direction, pause : ndarray (M,)
        Of each measurement: its number in the acquisition, its direction and its pause.
    between : ndarray (M, Q)
        What signals at the wave numbers add to its own.
    """

    small_delta: float
    directions: np.ndarray
    q: np.ndarray
    pauses: np.ndarray
    rows: np.ndarray
    direction: np.ndarray
    pause: np.ndarray
    between: np.ndarray

    def parts(self, n_modes: int) -> Iterator[PulseGroup]:
        """Groups of some of the directions, whose products of states are small enough."""
        n_directions, n_q = self.q.shape
        size = max(1, _LARGEST_BYTES // (16 * n_q * n_modes**2))
        for first in range(0, n_directions, size):
            own = (self.direction >= first) & (self.direction < first + size)
            if own.any():
                yield PulseGroup(
                    self.small_delta, self.directions[first : first + size],
                    self.q[first : first + size], self.pauses, self.rows[own],
                    self.direction[own] - first, self.pause[own], self.between[own],
                )  # fmt: skip


def pulse_groups(acquisition: Acquisition, extent_um: float) -> list[PulseGroup]:
    """Groups of the measurements that are weighted; the others keep their signal.

    A signal is the mean of cos(q x) over displacements x, which are not longer than the body:
    where a direction has more wave numbers than determine such a function, only as many are
    propagated, and a Chebyshev series of even terms tells the signals between.

    Parameters
    ----------
    acquisition : Acquisition
    extent_um : float
        The longest displacement along any direction.
    """
    q_vectors = acquisition.q_vectors
    q = np.linalg.norm(q_vectors, axis=1)
    weighted = np.flatnonzero(q > 0)
    groups = []
    for small_delta in np.unique(acquisition.small_delta[weighted].round(6)):
        rows = weighted[np.abs(acquisition.small_delta[weighted] - small_delta) < 1e-6]
        along = (q_vectors[rows] / q[rows, None]).round(_SAME_DIRECTION) + 0.0
        first = np.argmax(along != 0, axis=1)
        along *= np.sign(np.take_along_axis(along, first[:, None], axis=1))
        directions, direction = np.unique(along, axis=0, return_inverse=True)
        pause = (acquisition.big_delta - acquisition.small_delta)[rows].round(6)
        pauses, pause = np.unique(pause, return_inverse=True)
        nodes, between = _wave_numbers(q[rows], direction.ravel(), extent_um)
        groups.append(
            PulseGroup(
                small_delta, directions, nodes, pauses, rows, direction.ravel(), pause.ravel(),
                between,
            )
        )  # fmt: skip
    return groups


def _wave_numbers(q, direction, extent):
    """Wave numbers (D, Q) to propagate, and what each measurement takes of them (M, Q)."""
    own = [np.unique(q[direction == d].round(9)) for d in range(direction.max() + 1)]
    most, largest = max(map(len, own)), q.max()
    terms = np.arange(0, 2 * most, 2)
    needed = 1 + int((np.abs(jv(terms, largest * extent)) > _BETWEEN).sum())
    needed = max(needed, int(largest * extent / 2) + 2)
    if needed < most:
        even = np.arange(0, 2 * needed, 2)
        nodes = np.cos(np.pi * (np.arange(needed) + 0.5) / (2 * needed))
        series = np.linalg.inv(np.cos(even * np.arccos(nodes)[:, None]))
        at = np.cos(even * np.arccos(np.minimum(q / largest, 1))[:, None])
        return np.tile(nodes * largest, (len(own), 1)), at @ series
    padded = np.stack([np.pad(each, (0, most - len(each)), mode="edge") for each in own])
    place = np.array([np.argmin(np.abs(own[d] - x)) for d, x in zip(direction, q, strict=True)])
    return padded, np.eye(most)[place]


@dataclass(frozen=True, eq=False)
class PulseStates:
    """What a group of measurements leaves in n modes.

    Attributes
    ----------
    group : PulseGroup
    rates : ndarray (n,)
    turned : ndarray (D, n, n)
        Eigenvectors of the positions along each direction.
    states : ndarray (J + 1, D, n, Q)
        From the start to the end of a pulse, in these.
    """

    group: PulseGroup
    rates: np.ndarray
    turned: np.ndarray
    states: np.ndarray
    _stepper: _Stepper

    @classmethod
    def after(
        cls, group: PulseGroup, rates: np.ndarray, moments: np.ndarray, start: np.ndarray,
        steps: int,
    ) -> PulseStates:  # fmt: skip
        """Propagate the start (n,) through the first pulse, with positions (3, n, n)."""
        along = np.tensordot(group.directions, moments, 1)
        x, turned = np.linalg.eigh(along)
        stepper = _Stepper.of(rates, x, turned, group, steps)
        first = (start @ turned)[..., None].astype(complex)
        states = stepper.run(np.repeat(first, group.q.shape[1], axis=2))
        return cls(group, rates, turned, states, stepper)

    @property
    def last(self) -> np.ndarray:
        """States (D, n, Q) after the first pulse, in the modes."""
        return real_product(self.turned, self.states[-1])

    def signals(self) -> np.ndarray:
        """Of the group's measurements (M,)."""
        squares = np.abs(self.last) ** 2
        at_nodes = np.exp(-np.multiply.outer(self.group.pauses, self.rates)) @ squares[:, None]
        # (D, 1, n, Q) -> (D, T, Q)
        at_nodes = at_nodes.reshape(len(squares), len(self.group.pauses), -1)
        chosen = at_nodes[self.group.direction, self.group.pause]
        return (chosen * self.group.between).sum(axis=1)

    def pulled_back(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of weights (M,) times signals: by rates' matrix, positions and start.

        Returns
        -------
        by_rates : ndarray (n, n)
        by_positions : ndarray (3, n, n)
        by_start : ndarray (n,)
        """
        group, last = self.group, self.last
        nodes = np.zeros((*self.turned.shape[:1], len(group.pauses), group.q.shape[1]))
        np.add.at(nodes, (group.direction, group.pause), group.between * weights[:, None])
        decays = np.exp(-np.multiply.outer(group.pauses, self.rates))
        by_rates = np.zeros((len(self.rates),) * 2)
        end = np.zeros_like(last)
        for pause, decay, own in zip(group.pauses, decays, np.swapaxes(nodes, 0, 1), strict=True):
            end += decay[:, None] * last.conj() * own[:, None]
            weighted, flat = (np.moveaxis(x, 1, 0).reshape(len(decay), -1) for x in
                              (last.conj() * own[:, None], last))  # fmt: skip
            by_rates += (weighted @ flat.T).real * _divided(self.rates, pause)
        adjoint, states, shares = self._both(end)
        left = (adjoint * shares[:, None, None, None]).transpose(2, 1, 0, 3)
        right = states.transpose(2, 1, 0, 3)
        n_modes, flat = len(self.rates), (len(self.rates), -1)
        by_rates -= 2 * (left.reshape(flat) @ right.reshape(flat).T).real
        left = left * (2 / group.small_delta * group.q[:, None])
        per_direction = [(left[:, d].reshape(flat) @ right[:, d].reshape(flat).T).imag
                         for d in range(len(self.turned))]  # fmt: skip
        by_positions = np.tensordot(group.directions.T, np.array(per_direction), 1)
        by_start = 2 * adjoint[0].real.sum(axis=(0, 2))
        return by_rates, by_positions.reshape(3, n_modes, n_modes), by_start

    def changes(
        self, of_rates: np.ndarray, of_positions: np.ndarray, of_start: np.ndarray
    ) -> np.ndarray:
        """Changes (M, P) of signals with those of the rates' matrix, of positions and start.

        Parameters
        ----------
        of_rates : ndarray (P, n, n)
        of_positions : ndarray (P, 3, n, n)
        of_start : ndarray (P, n)
        """
        group, last = self.group, self.last
        n_directions, n_q = group.q.shape
        squared = (n_directions, n_q, len(self.rates) ** 2)
        rates = of_rates.reshape(len(of_rates), -1).T
        along = np.tensordot(group.directions, of_positions, (1, 1))
        along = along.reshape(n_directions, len(of_rates), -1).swapaxes(1, 2)
        start = of_start.T
        result = np.empty((len(group.rows), len(of_rates)))
        pair = last.transpose(0, 2, 1)
        pair = (pair[..., None].conj() * pair[..., None, :]).real.reshape(squared)
        for k, pause in enumerate(group.pauses):
            decay = np.exp(-self.rates * pause)
            at_nodes = (pair * _divided(self.rates, pause).ravel()) @ rates
            adjoint, states, shares = self._both(decay[:, None] * last.conj())
            # (J, D, n, Q) -> (D, Q, n, J)
            left = (adjoint * shares[:, None, None, None]).transpose(1, 3, 2, 0)
            right = states.transpose(1, 3, 2, 0)
            real = np.concatenate([left.real, -left.imag], axis=3)
            turned = np.concatenate([left.imag, left.real], axis=3)
            right = np.concatenate([right.real, right.imag], axis=3).swapaxes(2, 3)
            at_nodes -= 2 * (real @ right).reshape(squared) @ rates
            phases = 2 / group.small_delta * group.q[:, :, None]
            at_nodes += phases * ((turned @ right).reshape(squared) @ along)
            at_nodes += 2 * adjoint[0].real.swapaxes(1, 2) @ start
            own = group.pause == k
            chosen = at_nodes[group.direction[own]]
            result[own] = (group.between[own][:, None] @ chosen)[:, 0]
        return result

    def _both(self, end):
        """Adjoint states from the end (D, n, Q), states, both in the modes; Boole's weights."""
        adjoint = self._stepper.run(real_product(self.turned.swapaxes(1, 2), end))[::-1]
        n = len(adjoint) - 1
        shares = np.append(np.resize(_BOOLE, n), _BOOLE[0] / 2)
        shares[0] /= 2
        shares *= self.group.small_delta / n
        return real_product(self.turned, adjoint), real_product(self.turned, self.states), shares


@dataclass(frozen=True, eq=False)
class _Stepper:
    """One pulse in J steps, in the eigenvectors of the positions.

    Attributes
    ----------
    decay, half_decay : ndarray (D, n, n)
        Of a step and of half of it.
    quarter : ndarray (D, n, Q)
        Phase factors of a quarter of a step.
    steps : int
    """

    decay: np.ndarray
    half_decay: np.ndarray
    quarter: np.ndarray
    steps: int

    @classmethod
    def of(cls, rates, x, turned, group, steps):
        step = group.small_delta / steps
        decay, half = (
            turned.swapaxes(1, 2) @ (np.exp(-rates * h)[:, None] * turned)
            for h in (step, step / 2)
        )
        phase = x[:, :, None] * group.q[:, None] / (4 * steps)
        return cls(decay, half, np.exp(-1j * phase), steps)

    def run(self, state):
        """States (J + 1, D, n, Q) from the first on."""
        p, pp = self.quarter, self.quarter**2
        states = [state]
        for _ in range(self.steps):
            v = states[-1]
            middle = pp * real_product(self.half_decay, p * v)
            fine = p * real_product(self.half_decay, middle)
            coarse = pp * real_product(self.decay, pp * v)
            states.append((4 * fine - coarse) / 3)
        return np.array(states)


def _divided(rates, pause):
    """Divided differences (n, n) of exp(-rate pause)."""
    apart = np.abs(np.subtract.outer(rates, rates)) * pause
    share = np.where(apart > 0, -np.expm1(-apart) / np.where(apart > 0, apart, 1), 1.0)
    return -pause * np.exp(-np.minimum.outer(rates, rates) * pause) * share
