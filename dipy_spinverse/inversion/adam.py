"""Adam on log-sigmoid permeabilities: the published optimiser, as the baseline to beat."""

from __future__ import annotations

import math

import torch

from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.inversion.curriculum import Stage
from dipy_spinverse.inversion.priors import evaluate_priors
from dipy_spinverse.inversion.unknowns import (
    SignalModel,
    scaled_transmissibility,
    transmissibility,
)

# Bounds of the permeability, um/ms, as published (https://doi.org/10.48550/arXiv.2603.04638).
_MIN_PERMEABILITY, _MAX_PERMEABILITY = 0.01, 100.0
# Of theta, per iteration; chosen by hand.
_LEARNING_RATE = 0.6


def adam(
    model: SignalModel,
    data: torch.Tensor,
    sigma: torch.Tensor,
    initial: torch.Tensor,
    stage: Stage,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise |(S(x) - data) / sigma|^2 / 2 + priors(x) with Adam; arguments as `gauss_newton`.

    The variable of a face is theta, with permeability 0.01 (100 / 0.01)^sigmoid(theta) um/ms.
    Amplitudes are the least-squares solution at each iteration. The number of iterations is fixed
    (Kingma and Ba 2015, https://doi.org/10.48550/arXiv.1412.6980).
    """
    if model.free_water:
        raise ValueError(
            "optimizer is 'adam', which cannot fit free water; use 'gauss-newton' or "
            "free_water=False."
        )
    grid, simulator = model.simulator.grid, model.simulator
    resistance = torch.as_tensor(face_resistance(grid, simulator.medium.diffusivity)).to(data)
    tau = transmissibility(initial[:, : model.n_faces])
    ratio = _MAX_PERMEABILITY / _MIN_PERMEABILITY
    exponent = torch.log(tau / (1 - tau).clamp_min(1e-12) / resistance / _MIN_PERMEABILITY)
    theta = torch.logit((exponent / math.log(ratio)).clamp(1e-3, 1 - 1e-3)).requires_grad_()
    unknowns = initial.clone()
    optimiser = torch.optim.Adam([theta], lr=_LEARNING_RATE)

    def current_walls():
        permeability = _MIN_PERMEABILITY * ratio ** torch.sigmoid(theta)
        tau = 1 / (1 + 1 / (permeability * resistance))
        return tau, scaled_transmissibility(tau)

    for _ in range(stage.max_iterations):
        optimiser.zero_grad()
        tau, scaled = current_walls()
        in_grid = simulator.signals(tau.detach()).to(data)
        unknowns = model.with_best_amplitudes(unknowns, in_grid, data, sigma)
        _, amplitude, _ = model.split(unknowns)
        residual = (amplitude * in_grid - data) / sigma
        tau_gradient = simulator.pull_back(residual * amplitude / sigma, tau.detach()).to(data)
        _, gradient, _ = evaluate_priors(stage.priors, grid, scaled.detach())
        torch.autograd.backward([tau, scaled], [tau_gradient, gradient])
        optimiser.step()
    unknowns[:, : model.n_faces] = current_walls()[1].detach()
    return unknowns, torch.ones(len(data), dtype=torch.bool, device=data.device)
