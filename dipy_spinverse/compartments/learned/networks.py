"""Networks: deep, wide and deep, and one whose output is a distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.voxels.progress import tell

_VALIDATION = 0.1
_BATCH = 4096  # voxels predicted together


class WideAndDeep(nn.Module):
    """Sum of a linear model of features and their products, and of a deep network [1]_.

    References
    ----------
    .. [1] Cheng et al., Proc. 1st Workshop on Deep Learning for Recommender Systems (2016) 7,
       https://doi.org/10.1145/2988450.2988454
    """

    def __init__(self, n_in, n_out, width, depth):
        super().__init__()
        self.deep = deep(n_in, n_out, width, depth)
        self.wide = nn.Linear(n_in + n_in * (n_in + 1) // 2, n_out)
        nn.init.zeros_(self.wide.weight)
        self.register_buffer("pairs", torch.triu_indices(n_in, n_in), persistent=False)

    def forward(self, x):
        products = x[:, self.pairs[0]] * x[:, self.pairs[1]]
        return self.deep(x) + self.wide(torch.cat([x, products], dim=1))


def deep(n_in: int, n_out: int, width: int, depth: int) -> nn.Sequential:
    """Fully connected layers."""
    widths = [n_in, *[width] * depth]
    layers = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, n_out))


def train(
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    *,
    method: str,
    width: int = 128,
    depth: int = 3,
    n_components: int = 6,
    optimizer: str = "AdamW",
    learning_rate: float = 2e-3,
    batch_size: int = 512,
    max_epochs: int = 25,
    patience: int = 6,
) -> Learner:
    """Train a network by minibatches, and keep the one that was best on held-out samples.

    Parameters
    ----------
    x : ndarray (N, F)
    y : ndarray (N, T)
    seed : int
        Of the first weights, the held-out samples and the order of the others.
    method : {"deep", "wide-and-deep", "mixture-density"}
    width, depth : int, optional
        Of hidden layers.
    n_components : int, optional
        Normal distributions of "mixture-density".
    optimizer : str, optional
        Name of one in `torch.optim`.
    learning_rate : float, optional
        At the beginning; it falls to zero as a cosine.
    batch_size, max_epochs : int, optional
    patience : int, optional
        Epochs without a better loss after which training ends.

    Raises
    ------
    ValueError
        An optimiser that torch does not have.
    """
    n_targets = y.shape[1]
    settings = {
        "n_in": x.shape[1], "n_targets": n_targets, "width": width, "depth": depth,
        "n_components": n_components,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(method, settings)
    loss = _mixture_loss if method == "mixture-density" else nn.functional.mse_loss
    rng = np.random.default_rng(seed)
    order = torch.tensor(rng.permutation(len(x)))
    samples = (
        torch.tensor(x, dtype=torch.float32)[order],
        torch.tensor(y, dtype=torch.float32)[order],
    )
    n_held = max(1, int(_VALIDATION * len(x)))
    held, (inputs, targets) = [s[:n_held] for s in samples], (s[n_held:] for s in samples)
    stepper = optimizer_named(optimizer)(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, max_epochs)
    best, kept, waited, epochs = math.inf, None, 0, 0
    while epochs < max_epochs and waited <= patience:
        epochs += 1
        for batch in torch.tensor(rng.permutation(len(inputs))).split(batch_size):
            stepper.step(_closure(stepper, network, loss, inputs[batch], targets[batch]))
        schedule.step()
        with torch.no_grad():
            score = float(loss(network(held[0]), held[1]))
        waited += 1
        if score < best:
            best, kept, waited = score, copy.deepcopy(network.state_dict()), 0
        tell(epochs / max_epochs)
    if kept is None:
        raise ValueError(
            f"Training diverged with optimizer={optimizer!r} and learning_rate={learning_rate}; "
            "lower the learning rate."
        )
    settings |= {"loss": best, "epochs": epochs}
    return Learner(method, {name: value.numpy() for name, value in kept.items()}, settings)


def predict(learner: Learner, x: np.ndarray) -> np.ndarray:
    """Targets (N, T); not for "mixture-density"."""
    return torch.cat([out.double() for out in _outputs(learner, x)]).numpy()


def draw(learner: Learner, x: np.ndarray, n: int, seed: int) -> Tensor:
    """Draws (T, N, n) of "mixture-density".

    Quasi-random, and the same points for all voxels: quantiles are smoother than of random ones.
    """
    n_targets = learner.settings["n_targets"]
    cube = torch.tensor(qmc.Sobol(n_targets + 1, rng=np.random.default_rng(seed)).random(n))
    cube = cube.clamp(1e-6, 1 - 1e-6).float()
    normal = torch.special.ndtri(cube[:, 1:])
    draws = []
    for output in _outputs(learner, x):
        log_weights, means, roots = _mixture(output, n_targets)
        spread = torch.linalg.solve_triangular(
            roots, torch.eye(n_targets).expand_as(roots), upper=False
        )
        ends = torch.softmax(log_weights, dim=1).cumsum(dim=1)
        # Points in order of their first coordinate fill the components one after the other.
        chosen = torch.searchsorted(ends, cube[:, 0].expand(len(ends), -1).contiguous())
        chosen = chosen.clamp(max=ends.shape[1] - 1)
        voxel = torch.arange(len(ends))[:, None]
        lines = [
            means[..., row][voxel, chosen]
            + sum(spread[..., row, k][voxel, chosen] * normal[:, k] for k in range(row + 1))
            for row in range(n_targets)
        ]
        draws.append(torch.stack(lines))
    return torch.cat(draws, dim=1)


def _outputs(learner, x):
    network = _network(learner.method, learner.settings)
    network.load_state_dict({k: torch.tensor(v) for k, v in learner.arrays.items()})
    with torch.no_grad():
        return [network(part) for part in torch.tensor(x, dtype=torch.float32).split(_BATCH)]


def _network(method, settings):
    n_out, n_in = settings["n_targets"], settings["n_in"]
    shape = (settings["width"], settings["depth"])
    if method == "wide-and-deep":
        return WideAndDeep(n_in, n_out, *shape)
    if method == "mixture-density":
        n_out = settings["n_components"] * (1 + n_out + n_out * (n_out + 1) // 2)
    return deep(n_in, n_out, *shape)


def optimizer_named(name: str) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser of torch.

    Raises
    ------
    ValueError
        There is none of this name.
    """
    known = {
        key: kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    known.pop("Optimizer")
    if name not in known:
        raise ValueError(f"optimizer is {name!r}; torch.optim has {', '.join(sorted(known))}.")
    return known[name]


def _closure(stepper, network, loss, inputs, targets):
    """What an optimiser calls once or, as L-BFGS does, several times."""

    def value():
        stepper.zero_grad()
        result = loss(network(inputs), targets)
        result.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        return result

    return value


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
    roots = roots + torch.diag_embed(torch.exp(entries[..., :n].clamp(-7, 7)))
    return log_weights, means.reshape(len(output), n_components, n), roots


def _mixture_loss(output, target):
    """Negative logarithm of the density of the target, without its constant."""
    log_weights, means, roots = _mixture(output, target.shape[1])
    white = (roots @ (target[:, None] - means)[..., None])[..., 0]
    log_det = torch.log(torch.diagonal(roots, dim1=-2, dim2=-1)).sum(dim=-1)
    each = torch.log_softmax(log_weights, dim=1) + log_det - 0.5 * (white**2).sum(dim=-1)
    return -torch.logsumexp(each, dim=1).mean()
