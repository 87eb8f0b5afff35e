"""What tissue fractions are compared with in `tissue_fractions` and `ordinary_images`."""

from __future__ import annotations

import numpy as np
import torch
from dipy.segment.tissue import TissueClassifierHMRF
from sklearn.mixture import GaussianMixture
from torch import nn

from benchmarks.fraction_phantoms import Scan

N_STEPS, BATCH, RATE = 300, 8, 3e-3
MIXED = np.linspace(0.1, 0.9, 9)  # fractions of two tissues in one voxel


def order_of_brightness(values: np.ndarray) -> np.ndarray:
    """CSF, grey and white matter among three classes of a T1-weighted image: darkest first."""
    return np.argsort(values)


def smooth_factors(positions: np.ndarray, order: int = 3) -> np.ndarray:
    """Products of Legendre polynomials (V, N) of positions (V, D) from -1 to 1."""
    factors = np.polynomial.legendre.legvander(positions, order)
    orders = [k for k in np.ndindex(*[order + 1] * positions.shape[1]) if sum(k) <= order]
    columns = [np.prod([factors[:, d, n] for d, n in enumerate(k)], axis=0) for k in orders]
    return np.stack(columns, axis=1)


def mixture_with_partial_volume(
    images: np.ndarray, mask: np.ndarray, strength: float = 0.1, n_rounds: int = 40
) -> np.ndarray:
    """Fractions (X, Y, Z, 3) by expectation maximisation, as FAST is described; own code.

    Three classes with means and variances; mixtures of CSF and grey, of grey and white
    matter, of any fraction; a smooth bias field of each image; a Markov field of the five kinds of
    voxel (mean field). The first image is T1-weighted. Zhang et al., https://doi.org/10.1109/42.906424.
    """
    data, places = images[mask], np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0)
    basis = smooth_factors(2 * (places - low) / np.maximum(high - low, 1) - 1)
    parts, kinds = [*np.eye(3)], [0, 1, 2]
    for kind, (a, b) in enumerate(((0, 1), (1, 2)), start=3):
        parts += [(1 - f) * np.eye(3)[a] + f * np.eye(3)[b] for f in MIXED]
        kinds += [kind] * len(MIXED)
    parts, kinds = np.array(parts), np.array(kinds)
    of_kind = np.eye(5)[kinds]
    index = np.full(np.array(mask.shape) + 2, -1)
    index[tuple((places + 1).T)] = np.arange(len(places))
    steps = [*np.eye(3, dtype=int), *-np.eye(3, dtype=int)]
    near = np.stack([index[tuple((places + 1 + step).T)] for step in steps], axis=1)
    cuts = np.quantile(data[:, 0], [0.0, 0.2, 0.55, 1.0])
    hard = np.clip(np.searchsorted(cuts, data[:, 0], side="right") - 1, 0, 2)
    means = np.stack([data[hard == k].mean(axis=0) for k in range(3)])
    variances = np.stack([data[hard == k].var(axis=0) for k in range(3)])
    share, field = np.full(5, 0.2), np.ones_like(data)
    weights, neighbours = np.full((len(data), len(parts)), 1 / len(parts)), 0.0
    for _ in range(n_rounds):
        centre, variance = parts @ means, parts @ variances
        squares = (data[:, None] / field[:, None] - centre) ** 2 / variance
        logs = -0.5 * (squares + np.log(variance)).sum(axis=2)
        logs += np.log(share / np.bincount(kinds))[kinds] + strength * neighbours
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        probability = weights @ of_kind
        share = probability.mean(axis=0) + 1e-6
        total = np.where(near[..., None] >= 0, probability[near], 0).sum(axis=1)
        neighbours = total[:, kinds]
        joint = weights.sum(axis=0)
        corrected = data / field
        precision = joint[:, None] / variance
        for c in range(data.shape[1]):
            gram = (parts * precision[:, [c]]).T @ parts
            moment = parts.T @ ((weights.T @ corrected[:, c]) / variance[:, c])
            means[:, c] = np.linalg.solve(gram + 1e-9 * np.eye(3) * np.trace(gram), moment)
        for k in range(3):
            residual = corrected - means[k]
            variances[k] = weights[:, k] @ residual**2 / max(weights[:, k].sum(), 1e-9)
        variances = np.maximum(variances, 1e-4 * data.var(axis=0))
        expected = weights @ (parts @ means)
        for c in range(data.shape[1]):
            noise = weights @ (parts @ variances)[:, c]
            scaled = basis * (expected[:, [c]] / np.sqrt(noise)[:, None])
            target = data[:, c] / np.sqrt(noise)
            field[:, c] = basis @ np.linalg.lstsq(scaled, target, rcond=None)[0]
            field[:, c] = np.maximum(field[:, c] / field[:, c].mean(), 0.2)
    fractions = np.zeros((*mask.shape, 3))
    fractions[mask] = weights @ parts
    return fractions


def markov_field_3d(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """DIPY's TissueClassifierHMRF on a T1-weighted image: its partial volumes (X, Y, Z, 3)."""
    image = np.where(mask, image, 0)
    _, _, parts = TissueClassifierHMRF().classify(image / image.max(), 3, 0.1)
    parts = np.nan_to_num(np.asarray(parts))
    means = [np.average(image, weights=parts[..., k] + 1e-9) for k in range(3)]
    return parts[..., order_of_brightness(means)] * mask[..., None]


def gaussian_mixture(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Probabilities (X, Y, Z, 3) of a Gaussian mixture of three classes; the first is T1w."""
    data = images[mask]
    model = GaussianMixture(3, covariance_type="full", n_init=2, random_state=0).fit(data)
    fractions = np.zeros((*mask.shape, 3))
    fractions[mask] = model.predict_proba(data)[:, order_of_brightness(model.means_[:, 0])]
    return fractions


def markov_field(scan: Scan) -> np.ndarray:
    """DIPY's TissueClassifierHMRF on the last inversion: its partial volumes (X, Y, 3).

    White matter is brightest there and CSF darkest, as the classes of T1-weighted images are.
    """
    image = np.where(scan.head, scan.images[..., 3], 0)[..., None]
    _, _, parts = TissueClassifierHMRF().classify(image / image.max(), 3, 0.1)
    parts = np.nan_to_num(np.asarray(parts))[:, :, 0]
    means = [np.average(image[..., 0], weights=parts[..., k] + 1e-9) for k in range(3)]
    return parts[..., np.argsort(means)] * scan.head[..., None]


def mixture(scan: Scan) -> np.ndarray:
    """Gaussian mixture of all contrasts, of three tissues and background: probabilities."""
    data = scan.images[scan.head]
    found = GaussianMixture(4, covariance_type="diag", n_init=3, random_state=0).fit(data)
    # After the first inversion CSF is brightest, then grey matter, white matter, background.
    order = np.argsort(-found.means_[:, 0])[:3]
    fractions = np.zeros((*scan.head.shape, 3))
    fractions[scan.head] = found.predict_proba(data)[:, order]
    return fractions


class _UNet(nn.Module):
    def __init__(self, n_contrasts, width=16):
        super().__init__()

        def block(n_in, n_out):
            layers = [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
            return nn.Sequential(*layers, nn.Conv2d(n_out, n_out, 3, padding=1), nn.ReLU())

        self.down = nn.ModuleList([block(n_contrasts, width), block(width, 2 * width)])
        self.bottom = block(2 * width, 4 * width)
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        kept = []
        for block in self.down:
            kept.append(block(x))
            x = nn.functional.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for block in self.up:
            x = nn.functional.interpolate(x, scale_factor=2)
            x = block(torch.cat([x, kept.pop()], dim=1))
        return torch.softmax(self.out(x), dim=1)


class TrainedNetwork:
    """A small U-Net, trained on scans of other slices with their fractions.

    Parameters
    ----------
    scans : list of Scan
    fractions : list of ndarray (X, Y, 3)
    """

    def __init__(self, scans: list[Scan], fractions: list[np.ndarray]):
        torch.manual_seed(0)
        images = torch.tensor(np.stack([scan.images for scan in scans]), dtype=torch.float32)
        self.scale = images.std(dim=(0, 1, 2))
        images = (images / self.scale).permute(0, 3, 1, 2)
        truth = torch.tensor(np.stack(fractions), dtype=torch.float32).permute(0, 3, 1, 2)
        truth = torch.cat([truth, 1 - truth.sum(dim=1, keepdim=True)], dim=1)
        self.network = _UNet(images.shape[1])
        optimizer = torch.optim.Adam(self.network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, N_STEPS)
        for _ in range(N_STEPS):
            rows = torch.randint(len(images), (BATCH,))
            x, y = images[rows], truth[rows]
            for axis in (2, 3):
                if torch.rand(()) < 0.5:
                    x, y = x.flip(axis), y.flip(axis)
            loss = ((self.network(x) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def __call__(self, scan: Scan) -> np.ndarray:
        """Fractions (X, Y, 3)."""
        x = torch.tensor(scan.images, dtype=torch.float32) / self.scale
        with torch.no_grad():
            found = self.network(x.permute(2, 0, 1)[None])[0, :3]
        return found.permute(1, 2, 0).numpy().astype(float)
