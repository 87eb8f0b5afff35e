"""What tissue fractions are compared with in `tissue_fractions`."""

from __future__ import annotations

import numpy as np
import torch
from dipy.segment.tissue import TissueClassifierHMRF
from sklearn.mixture import GaussianMixture
from torch import nn

from benchmarks.fraction_phantoms import Scan

N_STEPS, BATCH, RATE = 300, 8, 3e-3


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
