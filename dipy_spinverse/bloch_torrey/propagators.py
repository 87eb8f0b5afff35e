"""Propagators: signals of an acquisition as a differentiable function of a discretisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Propagator(Protocol):
    """Signals of one acquisition as a function of the parameters of a discretisation.

    - `finite_volumes.simulator.Simulator`, of relative transmissibilities (V, F), steps in time
      and takes derivatives from a quadrature over the adjoint state;
    - `finite_elements.operator.NetworkPropagator`, of conductances, masses and positions, steps in
      time and is differentiated step by step;
    - `finite_elements.modal_sensitivity.ModalSensitivities`, of vertex positions (N, 3), works in
      Laplace modes.
    """

    @property
    def signals(self) -> Callable[..., torch.Tensor]:
        """Signals (..., M) of the parameters."""

    @property
    def pull_back(self) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
        """Derivatives of sum(cotangent * signals) by each parameter, of cotangent and these."""


def differentiable_signals(propagator: Propagator, *parameters: torch.Tensor) -> torch.Tensor:
    """Signals (..., M) of a propagator with their first derivatives, for torch; asking for second
    ones raises RuntimeError."""
    return _Signals.apply(propagator, *parameters)


class _Signals(torch.autograd.Function):
    @staticmethod
    def forward(ctx, propagator, *parameters):
        ctx.propagator = propagator
        ctx.save_for_backward(*parameters)
        return propagator.signals(*(x.detach() for x in parameters)).to(parameters[0])

    @staticmethod
    def backward(ctx, cotangent):
        return None, *_Gradients.apply(ctx.propagator, cotangent, *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, propagator, cotangent, *parameters):
        gradients = propagator.pull_back(cotangent.detach(), *(x.detach() for x in parameters))
        if isinstance(gradients, torch.Tensor):
            gradients = (gradients,)
        return tuple(g.to(x) for g, x in zip(gradients, parameters, strict=True))

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "Simulated signals have no second derivatives; use differences of first ones."
        )
