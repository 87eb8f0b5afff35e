"""Neural networks: deep, wide and deep, and a mixture density network."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.voxels.progress import report_progress

_PATIENCE = 6  # epochs without a lower loss after which training ends; usual
_VALIDATION = 0.1  # of the training set; usual
_BATCH = 4096  # voxels predicted together; limits memory
# Usual safeguards, without influence on trained networks: the norm of a gradient, and the range of
# the logarithm of an inverse standard deviation.
_MAX_GRADIENT = 5.0
_LOG_RANGE = 7.0


class DeepNetwork(Learner):
    """Fully connected layers."""

    @classmethod
    def train(
        cls,
        features,
        targets,
        seed,
        *,
        width=128,
        depth=3,
        n_components=6,
        learning_rate=2e-3,
        batch_size=512,
        max_epochs=25,
    ):
        """Train by minibatches (AdamW), and keep the weights of the least validation loss.

        The learning rate decays to zero as a cosine. The seed is that of the initial weights, the
        validation set and the order of the others.
        """
        settings = {
            "n_in": features.shape[1], "n_targets": targets.shape[1], "width": width,
            "depth": depth, "n_components": n_components,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls.network(**settings)
        rng = np.random.default_rng(seed)
        order = torch.tensor(rng.permutation(len(features)))
        x, y = (torch.tensor(a, dtype=torch.float32)[order] for a in (features, targets))
        n_validation = max(1, int(_VALIDATION * len(x)))
        x_validation, y_validation = x[:n_validation], y[:n_validation]
        x, y = x[n_validation:], y[n_validation:]
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_epochs)
        least_loss, weights, n_waited, n_epochs = math.inf, None, 0, 0
        while n_epochs < max_epochs and n_waited <= _PATIENCE:
            n_epochs += 1
            for batch in torch.tensor(rng.permutation(len(x))).split(batch_size):
                optimizer.zero_grad()
                cls.loss(network(x[batch]), y[batch]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                loss = float(cls.loss(network(x_validation), y_validation))
            n_waited += 1
            if loss < least_loss:
                least_loss, n_waited = loss, 0
                weights = copy.deepcopy(network.state_dict())
            report_progress(n_epochs / max_epochs)
        if weights is None:
            raise ValueError(
                f"Training diverged with learning_rate={learning_rate}; lower the learning rate."
            )
        return cls({name: value.numpy() for name, value in weights.items()}, settings)

    @staticmethod
    def network(n_in: int, n_targets: int, width: int, depth: int, n_components: int) -> nn.Module:
        """The network, before training."""
        return _layers(n_in, n_targets, width, depth)

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(output, target)

    def predict(self, features):
        return torch.cat([output.double() for output in self._outputs(features)]).numpy()

    def _outputs(self, features):
        network = self.network(**self.settings)
        network.load_state_dict({k: torch.tensor(v) for k, v in self.arrays.items()})
        with torch.no_grad():
            batches = torch.tensor(features, dtype=torch.float32).split(_BATCH)
            return [network(batch) for batch in batches]


class WideAndDeepNetwork(DeepNetwork):
    """Sum of a linear model of features and their products, and of a deep network [1]_.

    References
    ----------
    .. [1] Cheng et al., Proc. 1st Workshop on Deep Learning for Recommender Systems (2016) 7,
       https://doi.org/10.1145/2988450.2988454
    """

    @staticmethod
    def network(n_in, n_targets, width, depth, n_components):
        return _WideAndDeep(n_in, n_targets, width, depth)


class MixtureDensityNetwork(DeepNetwork):
    """A network whose output is a posterior distribution: a mixture of normal ones."""

    @staticmethod
    def network(n_in, n_targets, width, depth, n_components):
        n_out = n_components * (1 + n_targets + n_targets * (n_targets + 1) // 2)
        return _layers(n_in, n_out, width, depth)

    @staticmethod
    def loss(output, target):
        """Negative logarithm of the density of the target, without its constant."""
        log_weights, means, roots = _mixture(output, target.shape[1])
        whitened = (roots @ (target[:, None] - means)[..., None])[..., 0]
        log_det = torch.log(torch.diagonal(roots, dim1=-2, dim2=-1)).sum(dim=-1)
        log_weights = torch.log_softmax(log_weights, dim=1)
        return -torch.logsumexp(
            log_weights + log_det - 0.5 * (whitened**2).sum(dim=-1), dim=1
        ).mean()

    def predict(self, features):
        """Posterior means (N, T)."""
        return self.sample(features, 128, seed=0).mean(dim=2).T.double().numpy()

    def sample(self, features: np.ndarray, n: int, seed: int) -> Tensor:
        """Posterior samples (T, N, n).

        Quasi-random, and from the same points for all voxels: quantiles are smoother than those
        of random samples.
        """
        n_targets = self.settings["n_targets"]
        sobol = qmc.Sobol(n_targets + 1, rng=np.random.default_rng(seed))
        cube = torch.tensor(sobol.random(n)).clamp(1e-6, 1 - 1e-6).float()
        normal = torch.special.ndtri(cube[:, 1:])
        samples = []
        for output in self._outputs(features):
            log_weights, means, roots = _mixture(output, n_targets)
            factors = torch.linalg.solve_triangular(
                roots, torch.eye(n_targets).expand_as(roots), upper=False
            )
            cumulative = torch.softmax(log_weights, dim=1).cumsum(dim=1)
            # Points in order of their first coordinate fill the components one after the other.
            points = cube[:, 0].expand(len(output), -1).contiguous()
            component = torch.searchsorted(cumulative, points).clamp(max=cumulative.shape[1] - 1)
            voxel = torch.arange(len(output))[:, None]
            deviations = torch.einsum("vsij,sj->ivs", factors[voxel, component], normal)
            samples.append(means[voxel, component].movedim(2, 0) + deviations)
        return torch.cat(samples, dim=1)


class _WideAndDeep(nn.Module):
    def __init__(self, n_in, n_out, width, depth):
        super().__init__()
        self.deep = _layers(n_in, n_out, width, depth)
        self.wide = nn.Linear(n_in + n_in * (n_in + 1) // 2, n_out)
        nn.init.zeros_(self.wide.weight)
        self.register_buffer("pairs", torch.triu_indices(n_in, n_in), persistent=False)

    def forward(self, x):
        products = x[:, self.pairs[0]] * x[:, self.pairs[1]]
        return self.deep(x) + self.wide(torch.cat([x, products], dim=1))


def _layers(n_in, n_out, width, depth):
    widths = [n_in, *[width] * depth]
    layers = []
    for n_inputs, n_outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(n_inputs, n_outputs), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, n_out))


def _mixture(output, n):
    """Logarithms of weights (V, C), means (V, C, n), roots of precisions (V, C, n, n)."""
    n_components = output.shape[1] // (1 + n + n * (n + 1) // 2)
    log_weights, means, entries = output.split(
        [n_components, n_components * n, n_components * n * (n + 1) // 2], dim=1
    )
    entries = entries.reshape(len(output), n_components, -1)
    roots = output.new_zeros(len(output), n_components, n, n)
    row, column = torch.tril_indices(n, n, -1)
    roots[..., row, column] = entries[..., n:]
    roots = roots + torch.diag_embed(torch.exp(entries[..., :n].clamp(-_LOG_RANGE, _LOG_RANGE)))
    return log_weights, means.reshape(len(output), n_components, n), roots
