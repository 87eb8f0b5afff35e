"""Levenberg-Marquardt in data space, within bounds, for many voxels at once."""

from __future__ import annotations

import torch

from dipy_spinverse.inversion.curriculum import Stage, StageResult
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.inversion.protocols import ForwardModel

# Of projected Newton steps for one linearisation.
_PASSES = 6
# Relative to the Newton step.
_STEP_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
# A pass that adds less than this share of the decrease so far is the last.
_LEAST_SHARE = 1e-3
# In units of the unknowns' curvature, with misfits over the noise; doubling as in [1] below.
_DAMPING = Damping(initial=1.0, minimum=0.0, maximum=1e8, growth=2.0, acceleration=2.0)


def data_space_step(
    jacobian: torch.Tensor,
    residual: torch.Tensor,
    gradient: torch.Tensor,
    precision: torch.Tensor,
    to_lower: torch.Tensor,
    to_upper: torch.Tensor,
) -> torch.Tensor:
    """Step d within bounds that (nearly) minimises |r + J d|^2/2 + g.d + d.(p d)/2.

    Projected Newton steps [1]_: what the gradient pushes against a bound stays there, the other
    unknowns take the Newton step at the best of some lengths, cut off at the bounds.
    (J^T J + diag(p))^-1 is applied through the M x M matrix J diag(1/p) J^T + I.

    Parameters
    ----------
    jacobian : tensor (V, M, N)
        J and
    residual : tensor (V, M)
        r, both divided by the noise.
    gradient, precision : tensor (V, N)
        Gradient g and diagonal curvature p > 0 of all but the data.
    to_lower, to_upper : tensor (V, N)
        Least (<= 0) and largest (>= 0) step.

    Returns
    -------
    tensor (V, N)
        Never worse than no step.

    References
    ----------
    .. [1] Bertsekas, "Projected Newton methods for optimization problems with simple
       constraints", SIAM J. Control Optim. 20 (1982), https://doi.org/10.1137/0320018
    """
    identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)

    def change_of_signals(step):
        return torch.einsum("vmn,vn->vm", jacobian, step)

    def pulled_back(signals):
        return torch.einsum("vmn,vm->vn", jacobian, signals)

    def objective(step, shifted):
        return shifted.square().sum(dim=1) / 2 + (step * (gradient + precision * step / 2)).sum(1)

    step, shifted = torch.zeros_like(gradient), residual
    at_zero = value = objective(step, shifted)
    for _ in range(_PASSES):
        slope = pulled_back(shifted) + gradient + precision * step
        held = ((step <= to_lower) & (slope > 0)) | ((step >= to_upper) & (slope < 0))
        spread = torch.where(held, 0.0, 1 / precision)
        matrix = torch.einsum("vmn,vkn->vmk", jacobian * spread[:, None], jacobian) + identity
        factor, _ = torch.linalg.cholesky_ex(matrix)
        pushed = change_of_signals(spread * slope)
        solved = torch.cholesky_solve(pushed[..., None], factor)[..., 0]
        newton = -spread * (slope - pulled_back(solved))
        origin, before = step, value
        enough = before - _LEAST_SHARE * (at_zero - before)
        for length in _STEP_LENGTHS:
            trial = (origin + length * newton).clamp(to_lower, to_upper)
            trial_shifted = residual + change_of_signals(trial)
            trial_value = objective(trial, trial_shifted)
            better = trial_value < torch.minimum(value, enough)  # false where anything is NaN
            step = torch.where(better[:, None], trial, step)
            shifted = torch.where(better[:, None], trial_shifted, shifted)
            value = torch.where(better, trial_value, value)
        if not (value < before).any():
            break
    return step


def gauss_newton(
    model: ForwardModel,
    data: torch.Tensor,
    sigma: torch.Tensor,
    start: torch.Tensor,
    stage: Stage,
) -> tuple[torch.Tensor, StageResult]:
    """Minimise |(S(x) - data) / sigma|^2 / 2 + priors(x), each voxel on its own.

    Parameters
    ----------
    model : ForwardModel
        Whatever its unknowns stand for.
    data : tensor (V, M)
    sigma : tensor (V, M)
        Standard deviation of the noise.
    start : tensor (V, N)
        Unknowns to start from.
    stage : Stage
        Its priors and stopping rule.

    Returns
    -------
    unknowns : tensor (V, N)
    progress : Progress

    References
    ----------
    .. [1] Madsen, Nielsen and Tingleff, "Methods for non-linear least squares problems", 2nd ed.
       (2004): the change of the damping by the gain ratio, here over what the damped model
       promises, so that the damping falls faster.
    """
    x = start.clone()
    lower, upper = model.bounds(x)
    signals, jacobian = model.sensitivities(x)
    prior = model.penalty(x, stage.priors)
    misfit = ((signals - data) / sigma).square().sum(dim=1) / 2
    moved = torch.zeros_like(misfit, dtype=torch.bool)

    def linearise(rows):
        signals[rows], jacobian[rows] = model.sensitivities(x[rows])
        for part, new in zip(prior, model.penalty(x[rows], stage.priors), strict=True):
            part[rows] = new
        moved[rows] = False

    def advance(rows, damping):
        if moved[rows].any():
            linearise(rows[moved[rows]])
        here, noise = x[rows], sigma[rows]
        residual = (signals[rows] - data[rows]) / noise
        weighted = jacobian[rows] / noise[..., None]
        value, gradient, precision = (part[rows] for part in prior)
        precision = precision + damping[:, None]
        step = data_space_step(weighted, residual, gradient, precision, lower - here, upper - here)
        trial = (here + step).clamp(lower, upper)
        linear = torch.einsum("vmn,vn->vm", weighted, step)
        predicted = -(residual * linear + linear**2 / 2).sum(dim=1)
        predicted -= (gradient * step + precision * step**2 / 2).sum(dim=1)
        objective = (residual**2).sum(dim=1) / 2 + value
        reached = ((model.signals(trial) - data[rows]) / noise).square().sum(dim=1) / 2
        decrease = objective - reached - model.penalty(trial, stage.priors)[0]
        gain = decrease / predicted.clamp_min(torch.finfo(x.dtype).tiny)

        better = (decrease > 0) & (predicted > 0)  # false where anything is NaN
        accepted = rows[better]
        x[accepted], misfit[accepted], moved[accepted] = trial[better], reached[better], True
        shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2)
        return better, better & (decrease < stage.tolerance * objective), shrink

    stopped, steps = levenberg_marquardt(advance, misfit, _DAMPING, stage.max_iterations)
    return x, StageResult(stopped, steps, 2 * misfit / data.shape[1])
