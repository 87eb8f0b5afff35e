"""Adam on log-sigmoid permeabilities: the published optimiser, as the baseline to beat."""

from __future__ import annotations

import math

import torch

from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.inversion.curriculum import Stage, StageResult
from dipy_spinverse.inversion.priors import evaluate_priors
from dipy_spinverse.inversion.unknowns import (
    SignalModel,
    scaled_transmissibility,
    transmissibility,
)

# Permeabilities in um/ms, as published.
_LOWEST = 0.01
_HIGHEST = 100.0
# Of theta, per iteration.
_LEARNING_RATE = 0.6


def adam(
    model: SignalModel,
    data: torch.Tensor,
    sigma: torch.Tensor,
    start: torch.Tensor,
    stage: Stage,
) -> tuple[torch.Tensor, StageResult]:
    """Minimise |(S(x) - data) / sigma|^2 / 2 + priors(x) with Adam [1]_.

    The variable of a face is theta with permeability 0.01 (100 / 0.01)^sigmoid(theta) um/ms.
    Amplitudes are the best ones at each iteration.

    Parameters
    ----------
    model : SignalModel
        Without free water.
    data, sigma : tensor (V, M)
    start : tensor (V, N)
    stage : Stage
        Its priors and number of iterations; there is no other stopping rule.

    Returns
    -------
    unknowns : tensor (V, N)
    progress : Progress
        Converged: the schedule has come to its end.

    References
    ----------
    .. [1] Kingma and Ba, "Adam: a method for stochastic optimization" (2015),
       https://doi.org/10.48550/arXiv.1412.6980
    """
    if model.free_water:
        raise ValueError(
            "optimizer is 'adam', which cannot fit free water; use 'gauss-newton' or leave "
            "free_water off."
        )
    grid, simulator = model.simulator.grid, model.simulator
    resistance = torch.as_tensor(face_resistance(grid, simulator.medium.diffusivity)).to(data)
    tau = transmissibility(start[:, : model.n_faces])
    exponent = torch.log(tau / (1 - tau).clamp_min(1e-12) / resistance / _LOWEST)
    share = (exponent / math.log(_HIGHEST / _LOWEST)).clamp(1e-3, 1 - 1e-3)
    theta = torch.logit(share).requires_grad_()
    unknowns = start.clone()
    optimiser = torch.optim.Adam([theta], lr=_LEARNING_RATE)

    def current():
        kappa = _LOWEST * (_HIGHEST / _LOWEST) ** torch.sigmoid(theta)
        tau = 1 / (1 + 1 / (kappa * resistance))
        return tau, scaled_transmissibility(tau)

    for _ in range(stage.max_iterations):
        optimiser.zero_grad()
        tau, face_part = current()
        in_grid = simulator.signals(tau.detach()).to(data)
        unknowns = model.with_best_amplitudes(unknowns, in_grid, data, sigma)
        _, amplitude, _ = model.split(unknowns)
        residual = (amplitude * in_grid - data) / sigma
        by_tau = simulator.pull_back(tau.detach(), residual * amplitude / sigma).to(data)
        _, gradient, _ = evaluate_priors(stage.priors, grid, face_part.detach())
        torch.autograd.backward([tau, face_part], [by_tau, gradient])
        optimiser.step()
    unknowns[:, : model.n_faces] = current()[1].detach()
    iterations = torch.full((len(data),), stage.max_iterations, device=data.device)
    misfit = residual.square().mean(dim=1)
    return unknowns, StageResult(torch.ones_like(iterations, dtype=torch.bool), iterations, misfit)
