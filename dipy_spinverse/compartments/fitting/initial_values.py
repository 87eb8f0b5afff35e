"""Initial values of a search, and the best of the local minima from several of them.

Scalars are the best of a quasi-random dictionary; with the solver "mix" they are refined by
differential evolution (the MIX scheme [1]_). Axes are given, or those of a diffusion tensor.

References
----------
.. [1] Farooq et al., Sci. Rep. 6 (2016) 38927, https://doi.org/10.1038/srep38927
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.fibres import without_correction
from dipy_spinverse.compartments.fitting.amplitudes import optimal_amplitudes
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    apply_step,
    n_nonlinear,
    orthonormal_frames,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    Solution,
    variable_projection,
)
from dipy_spinverse.voxels.tensor_frames import tensor_frames

# Chosen by hand. The best fit is that of one start for NODDI and IVIM, and of four in all of 60
# voxels for ZCD (benchmarks/notes/compartments.md, "Initial values").
_DICTIONARY_SIZE = 16
_LEAST_DISTANCE = 0.35  # between initial values, in ranges of the scalars
# rad, between initial axes of one model, by hand: twice as much does as well (rows crossing_90 to
# crossing_40 of benchmarks.real_inputs)
_ANGLE_BETWEEN_AXES = 0.6
# Differential evolution: population and crossover as usual (Storn and Price, J. Glob. Optim. 11
# (1997) 341, https://doi.org/10.1023/A:1008202821328); generations chosen by hand.
_MEMBERS_PER_UNKNOWN, _LEAST_MEMBERS = 6, 8
_GENERATIONS = 30
_INITIAL_ROTATION = 0.3  # rad, largest rotation of the first members' axes
_CROSSOVER = 0.7  # probability that an unknown is the mutant's


def initial_values(
    problem: SeparableProblem,
    acquisition: BaseAcquisition,
    axes: np.ndarray | None,
    solver: str,
    seed: int,
) -> list[NonlinearParameters]:
    """Initial values of all voxels, with axes (V, 3, 3) of fibre populations or of a tensor."""
    definition, dtype = problem.definition, problem.data.dtype
    n_axes = len(definition.axes)
    if axes is None:
        frames = _fanned_frames(
            tensor_axis_frames(acquisition, problem.data.numpy(), dtype), n_axes
        )
    else:
        fibres = torch.tensor(axes[:, :n_axes], dtype=dtype)
        frames = orthonormal_frames(fibres.reshape(-1, 3)).reshape(len(axes), n_axes, 3, 3)
    if solver == "mix":
        (start,) = halton_initial_values(problem, frames)
        return [differential_evolution(problem, start, seed)]
    # Several populations have too many unknowns for a few initial values to help.
    n_starts = definition.n_starts if definition.n_fibres < 2 else 1
    return halton_initial_values(problem, frames, n_starts)


def tensor_axis_frames(
    acquisition: BaseAcquisition, signals: np.ndarray, dtype: torch.dtype
) -> Tensor:
    """Frames (V, 3, 3) whose axis is the first eigenvector of a diffusion tensor."""
    frames = torch.tensor(tensor_frames(acquisition, signals), dtype=dtype)
    return orthonormal_frames(frames[:, 2], frames[:, 1])


def _fanned_frames(frames, n_axes):
    """Frames (V, A, 3, 3), rotated from frames (V, 3, 3) in the plane of fanning.

    Equal axes, which are exchangeable, would be a stationary point of the misfit.
    """
    angle = _ANGLE_BETWEEN_AXES * (torch.arange(n_axes, dtype=frames.dtype) - 0.5 * (n_axes - 1))
    rotation = torch.zeros(n_axes, 3, 3, dtype=frames.dtype)
    rotation[:, 0, 0] = rotation[:, 2, 2] = torch.cos(angle)
    rotation[:, 2, 0], rotation[:, 1, 1] = torch.sin(angle), 1
    rotation[:, 0, 2] = -rotation[:, 2, 0]
    return rotation @ frames[:, None]


def halton_initial_values(
    problem: SeparableProblem, frames: Tensor, n_starts: int = 1
) -> list[NonlinearParameters]:
    """The best of 16 quasi-random scalars in each voxel, with given frames (V, A, 3, 3).

    Further initial values are the best of those at a distance from the former ones.
    """
    corrections = without_correction(problem.definition)
    n = len(problem.definition.parameters) - len(corrections)
    if n == 0:
        unit = frames.new_tensor(corrections).expand(len(problem.data), -1).clone()
        return [NonlinearParameters(unit, frames)]
    points = qmc.Halton(n, scramble=False).random(_DICTIONARY_SIZE + 1)[1:]
    points = np.hstack([points, np.tile(corrections, (len(points), 1))])
    dictionary = torch.tensor(points, dtype=frames.dtype)
    misfits = torch.stack(
        [
            _misfit(problem, NonlinearParameters(problem.with_known(unit[None]), frames))
            for unit in dictionary
        ],
        dim=1,
    )
    neighbours = torch.cdist(dictionary, dictionary) < _LEAST_DISTANCE
    starts = []
    for _ in range(n_starts):
        lowest = misfits.argmin(dim=1)
        unit = problem.with_known(dictionary[lowest])
        starts.append(NonlinearParameters(unit, frames))
        misfits = torch.where(neighbours[lowest], torch.inf, misfits)
    return starts


def _misfit(problem, parameters):
    """Sum of squares (V,) with the optimal amplitudes."""
    basis_signals = problem.weighted(problem.basis_signals(parameters))
    return optimal_amplitudes(basis_signals, problem.weighted(problem.data))[1]


def best_local_minimum(
    problem: SeparableProblem, starts: list[NonlinearParameters]
) -> tuple[Solution, list[NonlinearParameters]]:
    """The best of the local minima from all initial values, and all of them, the best first."""
    if len(starts) == 1:
        solution = variable_projection(problem, starts[0])
        return solution, [solution.parameters]
    n_voxels, n = len(problem.data), len(starts)
    replicated = problem.of_voxels(torch.arange(n_voxels).repeat(n))
    units, frames = torch.cat([s.unit for s in starts]), torch.cat([s.frames for s in starts])
    solutions = variable_projection(replicated, NonlinearParameters(units, frames))
    best_start = replicated.misfit(solutions.predicted).reshape(n, n_voxels).argmin(dim=0)
    rows = [(best_start + k) % n * n_voxels + torch.arange(n_voxels) for k in range(n)]
    return solutions.of_voxels(rows[0]), [solutions.parameters.of_voxels(row) for row in rows]


def differential_evolution(
    problem: SeparableProblem, start: NonlinearParameters, seed: int
) -> NonlinearParameters:
    """Best member of a population after 30 generations (best of two and random differences).

    `start` is a member, and the origin of the axes' rotations.
    """
    rng = np.random.default_rng(seed)
    n, n_scalars = n_nonlinear(problem.definition), start.unit.shape[1]
    if n == 0:
        return start
    n_members, n_voxels = max(_LEAST_MEMBERS, _MEMBERS_PER_UNKNOWN * n), len(start.unit)

    def random(*shape):
        return torch.tensor(rng.random(shape), dtype=start.unit.dtype)

    def parameters_of(member):
        step = torch.cat([member[:, :n_scalars] - start.unit, member[:, n_scalars:]], dim=1)
        return apply_step(problem.definition, start, step)

    members = random(n_members, n_voxels, n)
    members[..., n_scalars:] = _INITIAL_ROTATION * (2 * members[..., n_scalars:] - 1)
    members[0, :, :n_scalars], members[0, :, n_scalars:] = start.unit, 0
    misfits = torch.stack([_misfit(problem, parameters_of(member)) for member in members])
    voxel = torch.arange(n_voxels)
    for _ in range(_GENERATIONS):
        leader = members[misfits.argmin(dim=0), voxel]
        for k in range(n_members):
            i, j = rng.choice(n_members, 2, replace=False)
            mutant = leader + (0.5 + 0.5 * rng.random()) * (members[i] - members[j])
            trial = torch.where(random(n_voxels, n) < _CROSSOVER, mutant, members[k])
            scalars, previous = trial[:, :n_scalars], members[k][:, :n_scalars]
            # Outside of the bounds: halfway from the member to the bound.
            scalars = torch.where(scalars > 1, 0.5 * (1 + previous), scalars)
            scalars = torch.where(trial[:, :n_scalars] < 0, 0.5 * previous, scalars)
            trial = torch.cat([scalars, trial[:, n_scalars:]], dim=1)
            misfit = _misfit(problem, parameters_of(trial))
            lower = misfit < misfits[k]
            members[k] = torch.where(lower[:, None], trial, members[k])
            misfits[k] = torch.where(lower, misfit, misfits[k])
    return parameters_of(members[misfits.argmin(dim=0), voxel])
