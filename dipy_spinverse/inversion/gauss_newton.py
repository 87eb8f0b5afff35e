"""Levenberg-Marquardt in data space, with bounds, for many voxels at once."""

from __future__ import annotations

import torch

from dipy_spinverse.inversion.curriculum import Stage
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.inversion.unknowns import SignalModel

# Projected Newton steps of one linearisation, at most, and their lengths that are tried. Does not
# affect the minimum, only the number of iterations.
_NEWTON_STEPS = 6
_STEP_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
# The last Newton step is that which adds less than this fraction of the total decrease.
_MIN_DECREASE = 1e-3
# Damping in units of the curvature of the unknowns; doubling as in [1] of `gauss_newton`.
_DAMPING = Damping(initial=1.0, minimum=0.0, maximum=1e8, growth=2.0, acceleration=2.0)


def data_space_step(
    jacobian: torch.Tensor,
    residual: torch.Tensor,
    gradient: torch.Tensor,
    precision: torch.Tensor,
    to_lower: torch.Tensor,
    to_upper: torch.Tensor,
) -> torch.Tensor:
    """Step d (V, N) within bounds that approximately minimises |r + J d|^2/2 + g.d + d.(p d)/2.

    J (V, M, N) and r (V, M) are over the noise; g and p > 0 (V, N) are gradient and curvature of
    the prior; to_lower <= 0 and to_upper >= 0 (V, N) bound d. Projected Newton steps: unknowns at
    a bound with a gradient towards it are fixed, the others take the Newton step with the best of
    some lengths, clipped at the bounds (Bertsekas 1982, https://doi.org/10.1137/0320018).
    (J^T J + diag(p))^-1 is applied through the M x M matrix J diag(1/p) J^T + I. The objective
    never increases.
    """
    identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)

    def change_of_signals(step):
        return torch.einsum("vmn,vn->vm", jacobian, step)

    def adjoint(signals):
        return torch.einsum("vmn,vm->vn", jacobian, signals)

    def objective(step, new_residual):
        return new_residual.square().sum(dim=1) / 2 + (
            step * (gradient + precision * step / 2)
        ).sum(1)

    step, new_residual = torch.zeros_like(gradient), residual
    at_zero = value = objective(step, new_residual)
    for _ in range(_NEWTON_STEPS):
        slope = adjoint(new_residual) + gradient + precision * step
        at_bound = ((step <= to_lower) & (slope > 0)) | ((step >= to_upper) & (slope < 0))
        variance = torch.where(at_bound, 0.0, 1 / precision)
        matrix = torch.einsum("vmn,vkn->vmk", jacobian * variance[:, None], jacobian) + identity
        factor, _ = torch.linalg.cholesky_ex(matrix)
        data_step = change_of_signals(variance * slope)
        solved = torch.cholesky_solve(data_step[..., None], factor)[..., 0]
        newton = -variance * (slope - adjoint(solved))
        origin, previous = step, value
        target = previous - _MIN_DECREASE * (at_zero - previous)
        for length in _STEP_LENGTHS:
            trial = (origin + length * newton).clamp(to_lower, to_upper)
            trial_residual = residual + change_of_signals(trial)
            trial_value = objective(trial, trial_residual)
            improved = trial_value < torch.minimum(value, target)  # False where NaN
            step = torch.where(improved[:, None], trial, step)
            new_residual = torch.where(improved[:, None], trial_residual, new_residual)
            value = torch.where(improved, trial_value, value)
        if not (value < previous).any():
            break
    return step


def gauss_newton(
    model: SignalModel,
    data: torch.Tensor,
    sigma: torch.Tensor,
    initial: torch.Tensor,
    stage: Stage,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise |(S(x) - data) / sigma|^2 / 2 + priors(x) of each voxel in one stage.

    Returns the unknowns (V, N) for data and noise (V, M), and whether they have converged (V,).
    The damping changes with the gain ratio (Madsen, Nielsen and Tingleff, "Methods for non-linear
    least squares problems", 2004), here relative to the decrease that the damped model predicts,
    so that the damping decreases faster.
    """
    x = initial.clone()
    lower, upper = model.bounds(x)
    signals, jacobian = model.sensitivities(x)
    prior = model.penalty(x, stage.priors)
    moved = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def linearise(rows):
        signals[rows], jacobian[rows] = model.sensitivities(x[rows])
        for array, updated in zip(prior, model.penalty(x[rows], stage.priors), strict=True):
            array[rows] = updated
        moved[rows] = False

    def advance(rows, damping):
        if moved[rows].any():
            linearise(rows[moved[rows]])
        current, noise = x[rows], sigma[rows]
        residual = (signals[rows] - data[rows]) / noise
        weighted = jacobian[rows] / noise[..., None]
        value, gradient, precision = (array[rows] for array in prior)
        precision = precision + damping[:, None]
        step = data_space_step(
            weighted, residual, gradient, precision, lower - current, upper - current
        )
        trial = (current + step).clamp(lower, upper)
        linear = torch.einsum("vmn,vn->vm", weighted, step)
        predicted = -(residual * linear + linear**2 / 2).sum(dim=1)
        predicted -= (gradient * step + precision * step**2 / 2).sum(dim=1)
        objective = (residual**2).sum(dim=1) / 2 + value
        trial_misfit = ((model.signals(trial) - data[rows]) / noise).square().sum(dim=1) / 2
        decrease = objective - trial_misfit - model.penalty(trial, stage.priors)[0]
        gain = decrease / predicted.clamp_min(torch.finfo(x.dtype).tiny)

        improved = (decrease > 0) & (predicted > 0)  # False where NaN
        accepted = rows[improved]
        x[accepted], moved[accepted] = trial[improved], True
        shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2)
        return improved, improved & (decrease < stage.tolerance * objective), shrink

    return x, levenberg_marquardt(advance, x[:, 0], _DAMPING, stage.max_iterations)
