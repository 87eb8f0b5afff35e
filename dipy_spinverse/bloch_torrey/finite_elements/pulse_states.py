"""Pairs of pulses in the span of a few Laplace modes: signals and their derivatives.

Along a direction n the magnetisation in the modes obeys dv/dt = -(L + i g X_n) v during a pulse,
with L the rates and X_n the positions along n between modes, and a signal is

    S = sum_k exp(-L_k (Delta - delta)) |v_k(delta)|^2.

A pulse is stepped in the eigenvectors of X_n, where its phases are diagonal, by symmetric
splitting and one extrapolation [1]_. As the operator is symmetric, the same steps propagate the
adjoint state backward.

References
----------
.. [1] Chin, "Multi-product splitting and Runge-Kutta-Nystrom integrators", Celest. Mech. Dyn.
   Astr. 106 (2010), https://doi.org/10.1007/s10569-010-9255-9
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import jv

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.sweep import real_product

# Of signals between the wave numbers that are propagated, at most: the first omitted term of
# their Chebyshev series (measured: below 1e-5, tests/test_modal_sensitivity.py).
_SERIES_TOLERANCE = 1e-4
_DIRECTION_DECIMALS = 7  # up to which directions are the same
_BOOLE = np.array([28.0, 64.0, 24.0, 64.0]) / 45  # Boole's rule, from one panel to the next
_LARGEST_BYTES = 2**24  # of the products of states of one chunk of the directions


@dataclass(frozen=True, eq=False)
class PulseGroup:
    """M measurements of one pulse duration (ms), as rays of D directions at Q wave numbers."""

    small_delta: float
    directions: np.ndarray  # (D, 3)
    q: np.ndarray  # (D, Q), that are propagated, rad/um
    pauses: np.ndarray  # (T,), Delta - delta, ms
    rows: np.ndarray  # (M,), in the acquisition
    direction: np.ndarray  # (M,)
    pause: np.ndarray  # (M,)
    interpolation: np.ndarray  # (M, Q), weights of the signals at the wave numbers

    def chunks(self, n_modes: int) -> Iterator[PulseGroup]:
        """Groups of some of the directions, whose products of states are small enough."""
        n_directions, n_q = self.q.shape
        size = max(1, _LARGEST_BYTES // (16 * n_q * n_modes**2))
        for start in range(0, n_directions, size):
            chunk = slice(start, start + size)
            mask = (self.direction >= start) & (self.direction < start + size)
            if mask.any():
                yield replace(
                    self, directions=self.directions[chunk], q=self.q[chunk], rows=self.rows[mask],
                    direction=self.direction[mask] - start, pause=self.pause[mask],
                    interpolation=self.interpolation[mask],
                )  # fmt: skip


def pulse_groups(acquisition: Acquisition, extent_um: float) -> list[PulseGroup]:
    """Groups of the measurements that are weighted; the others keep their signal.

    A signal is the mean of cos(q x) over displacements x, which are not longer than the body, of
    `extent_um`: where a direction has more wave numbers than determine such a function, only as
    many are propagated, and a Chebyshev series of even terms interpolates the signals between.
    """
    q_vectors = acquisition.q_vectors
    q = np.linalg.norm(q_vectors, axis=1)
    weighted = np.flatnonzero(q > 0)
    groups = []
    for small_delta in np.unique(acquisition.small_delta[weighted].round(6)):
        rows = weighted[np.abs(acquisition.small_delta[weighted] - small_delta) < 1e-6]
        axes = (q_vectors[rows] / q[rows, None]).round(_DIRECTION_DECIMALS) + 0.0
        axes *= np.sign(np.take_along_axis(axes, np.argmax(axes != 0, axis=1)[:, None], axis=1))
        directions, direction = np.unique(axes, axis=0, return_inverse=True)
        direction = direction.ravel()
        pause = (acquisition.big_delta - acquisition.small_delta)[rows].round(6)
        pauses, pause = np.unique(pause, return_inverse=True)
        nodes, interpolation = _wave_numbers(q[rows], direction, extent_um)
        groups.append(
            PulseGroup(
                small_delta, directions, nodes, pauses, rows, direction, pause.ravel(),
                interpolation,
            )
        )  # fmt: skip
    return groups


def _wave_numbers(q, direction, extent):
    """Wave numbers (D, Q) to propagate, and their weights in each measurement (M, Q)."""
    measured = [np.unique(q[direction == d].round(9)) for d in range(direction.max() + 1)]
    n_measured, largest = max(map(len, measured)), q.max()
    terms = np.arange(0, 2 * n_measured, 2)
    n_terms = 1 + int((np.abs(jv(terms, largest * extent)) > _SERIES_TOLERANCE).sum())
    n_terms = max(n_terms, int(largest * extent / 2) + 2)
    if n_terms < n_measured:
        orders = np.arange(0, 2 * n_terms, 2)
        nodes = np.cos(np.pi * (np.arange(n_terms) + 0.5) / (2 * n_terms))
        series = np.linalg.inv(np.cos(orders * np.arccos(nodes)[:, None]))
        basis = np.cos(orders * np.arccos(np.minimum(q / largest, 1))[:, None])
        return np.tile(nodes * largest, (len(measured), 1)), basis @ series
    padded = np.stack([np.pad(x, (0, n_measured - len(x)), mode="edge") for x in measured])
    index = [np.argmin(np.abs(measured[d] - x)) for d, x in zip(direction, q, strict=True)]
    return padded, np.eye(n_measured)[index]


@dataclass(frozen=True, eq=False)
class PulseStates:
    """States of a group of measurements during the first pulse, in n modes."""

    group: PulseGroup
    rates: np.ndarray  # (n,)
    basis: np.ndarray  # (D, n, n), eigenvectors of the positions along each direction
    states: np.ndarray  # (J + 1, D, n, Q), from start to end of the pulse, in this basis
    _stepper: _Stepper

    @classmethod
    def after(
        cls, group: PulseGroup, rates: np.ndarray, moments: np.ndarray, start: np.ndarray,
        steps: int,
    ) -> PulseStates:  # fmt: skip
        """Propagate the start (n,) through the first pulse, with positions (3, n, n)."""
        x, basis = np.linalg.eigh(np.tensordot(group.directions, moments, 1))
        stepper = _Stepper.of(rates, x, basis, group, steps)
        initial = (start @ basis)[..., None].astype(complex)
        states = stepper.run(np.repeat(initial, group.q.shape[1], axis=2))
        return cls(group, rates, basis, states, stepper)

    @cached_property
    def _final(self):
        """States (D, n, Q) after the first pulse, in the modes."""
        return real_product(self.basis, self.states[-1])

    def signals(self) -> np.ndarray:
        """Of the group's measurements (M,)."""
        squares = np.abs(self._final) ** 2
        at_nodes = np.exp(-np.multiply.outer(self.group.pauses, self.rates)) @ squares[:, None]
        # (D, 1, n, Q) -> (D, T, Q)
        at_nodes = at_nodes.reshape(len(squares), len(self.group.pauses), -1)
        at_nodes = at_nodes[self.group.direction, self.group.pause]
        return (at_nodes * self.group.interpolation).sum(axis=1)

    def pull_back(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of weights (M,) times signals by rates' matrix, positions and start."""
        group, final, n_modes = self.group, self._final, len(self.rates)
        nodes = np.zeros((len(self.basis), len(group.pauses), group.q.shape[1]))
        np.add.at(nodes, (group.direction, group.pause), group.interpolation * weights[:, None])
        decays = np.exp(-np.multiply.outer(group.pauses, self.rates))
        by_rates, cotangent = np.zeros((n_modes, n_modes)), np.zeros_like(final)
        for pause, decay, node in zip(group.pauses, decays, np.swapaxes(nodes, 0, 1), strict=True):
            weighted = final.conj() * node[:, None]
            cotangent += decay[:, None] * weighted
            product = _flat(weighted, 1) @ _flat(final, 1).T
            by_rates += product.real * _divided_differences(self.rates, pause)
        adjoint, states, quadrature = self._adjoint_and_states(cotangent)
        adjoint_weighted = adjoint * quadrature[:, None, None, None]
        by_rates -= 2 * (_flat(adjoint_weighted, 2) @ _flat(states, 2).T).real
        adjoint_weighted *= (2 / group.small_delta * group.q)[:, None]
        per_direction = [
            (_flat(adjoint_weighted[:, d], 1) @ _flat(states[:, d], 1).T).imag
            for d in range(len(self.basis))
        ]
        by_positions = np.tensordot(group.directions.T, np.array(per_direction), 1)
        by_start = 2 * adjoint[0].real.sum(axis=(0, 2))
        return by_rates, by_positions, by_start

    def changes(
        self, of_rates: np.ndarray, of_positions: np.ndarray, of_start: np.ndarray
    ) -> np.ndarray:
        """Changes (M, P) of signals with those of the rates' matrix (P, n, n), of positions
        (P, 3, n, n) and of the start (P, n).
        """
        group, final = self.group, self._final
        n_directions, n_q = group.q.shape
        squared = (n_directions, n_q, len(self.rates) ** 2)
        rates = of_rates.reshape(len(of_rates), -1).T
        along = np.tensordot(group.directions, of_positions, (1, 1))
        along = along.reshape(n_directions, len(of_rates), -1).swapaxes(1, 2)
        result = np.empty((len(group.rows), len(of_rates)))
        products = final.transpose(0, 2, 1)
        products = (products[..., None].conj() * products[..., None, :]).real.reshape(squared)
        for k, pause in enumerate(group.pauses):
            decay = np.exp(-self.rates * pause)
            at_nodes = (products * _divided_differences(self.rates, pause).ravel()) @ rates
            adjoint, states, quadrature = self._adjoint_and_states(decay[:, None] * final.conj())
            # (J, D, n, Q) -> (D, Q, n, J)
            y = (adjoint * quadrature[:, None, None, None]).transpose(1, 3, 2, 0)
            u = states.transpose(1, 3, 2, 0)
            real_part = np.concatenate([y.real, -y.imag], axis=3)
            imaginary_part = np.concatenate([y.imag, y.real], axis=3)
            u = np.concatenate([u.real, u.imag], axis=3).swapaxes(2, 3)
            at_nodes -= 2 * (real_part @ u).reshape(squared) @ rates
            phases = 2 / group.small_delta * group.q[:, :, None]
            at_nodes += phases * ((imaginary_part @ u).reshape(squared) @ along)
            at_nodes += 2 * adjoint[0].real.swapaxes(1, 2) @ of_start.T
            mask = group.pause == k
            at_nodes = at_nodes[group.direction[mask]]
            result[mask] = (group.interpolation[mask][:, None] @ at_nodes)[:, 0]
        return result

    def _adjoint_and_states(self, cotangent):
        """Adjoint states for the cotangent (D, n, Q) of the final ones, states, both in the
        modes; Boole's weights."""
        adjoint = self._stepper.run(real_product(self.basis.swapaxes(1, 2), cotangent))[::-1]
        n = len(adjoint) - 1
        quadrature = np.append(np.resize(_BOOLE, n), _BOOLE[0] / 2)
        quadrature[0] /= 2
        quadrature *= self.group.small_delta / n
        return real_product(self.basis, adjoint), real_product(self.basis, self.states), quadrature


@dataclass(frozen=True, eq=False)
class _Stepper:
    """One pulse in J steps, in the eigenvectors of the positions."""

    decay: np.ndarray  # (D, n, n), of a step
    half_decay: np.ndarray  # (D, n, n)
    quarter: np.ndarray  # (D, n, Q), phase factors of a quarter of a step
    steps: int

    @classmethod
    def of(cls, rates, x, basis, group, steps):
        step = group.small_delta / steps
        decay, half_decay = (
            basis.swapaxes(1, 2) @ (np.exp(-rates * h)[:, None] * basis) for h in (step, step / 2)
        )
        phase = x[:, :, None] * group.q[:, None] / (4 * steps)
        return cls(decay, half_decay, np.exp(-1j * phase), steps)

    def run(self, state):
        """States (J + 1, D, n, Q) from the initial one on."""
        p, pp = self.quarter, self.quarter**2
        states = [state]
        for _ in range(self.steps):
            v = states[-1]
            middle = pp * real_product(self.half_decay, p * v)
            fine = p * real_product(self.half_decay, middle)
            coarse = pp * real_product(self.decay, pp * v)
            states.append((4 * fine - coarse) / 3)
        return np.array(states)


def _flat(states, axis):
    """States as a matrix with the modes, which are along an axis, as rows."""
    return np.moveaxis(states, axis, 0).reshape(states.shape[axis], -1)


def _divided_differences(rates, pause):
    """Divided differences (n, n) of exp(-rate pause)."""
    gap = np.abs(np.subtract.outer(rates, rates)) * pause
    slope = np.where(gap > 0, -np.expm1(-gap) / np.where(gap > 0, gap, 1), 1.0)
    return -pause * np.exp(-np.minimum.outer(rates, rates) * pause) * slope
