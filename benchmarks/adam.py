"""Adam on log-sigmoid permeabilities: the published optimiser, a baseline of `recovery`."""

from __future__ import annotations

import math

import torch

from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.inversion import Stage
from dipy_spinverse.inversion.face_solver import FaceSolver
from dipy_spinverse.inversion.priors import evaluate_priors
from dipy_spinverse.inversion.unknowns import (
    SignalModel,
    scaled_transmissibility,
    transmissibility,
)
from dipy_spinverse.spinverse import FaceInversion

# Bounds of the permeability, um/ms, as published (https://doi.org/10.48550/arXiv.2603.04638).
_MIN_PERMEABILITY, _MAX_PERMEABILITY = 0.01, 100.0
# Of theta, per iteration; chosen by hand.
_LEARNING_RATE = 0.6
# As published: 200 iterations at the longest time, 200 at the next, no priors.
CURRICULUM = (
    Stage(diffusion_times=(0,), max_iterations=200, initial_value=0.5),
    Stage(diffusion_times=(1,), max_iterations=200),
)


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


class AdamSolver(FaceSolver):
    """Adam, whose number of iterations is that of its curriculum, whatever the noise level."""

    _optimise = staticmethod(adam)

    def _at_true_noise(self, signals, noise, unknowns, converged):
        return unknowns, converged


class AdamInversion(FaceInversion):
    """Permeability of every face by Adam."""

    def solver(self, problem):
        return AdamSolver(problem, self.curriculum or CURRICULUM, self.priors)
