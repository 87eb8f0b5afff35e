"""Scores of tissue maps, as the published work computes them, for `tissue_fractions`."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from benchmarks.fraction_phantoms import crisp

LEAST = 0.35  # below it in every tissue, the published rule assigns background


def psnr(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB (T,) over the whole image; the peak of a fraction is 1."""
    squares = (found - truth) ** 2
    return -10 * np.log10(squares.mean(axis=tuple(range(truth.ndim - 1))))


def ssim(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity (T,), Gaussian window of 1.5 voxels, range 1, as torchmetrics'."""
    options = {"data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(truth[..., k], found[..., k], **options)
            for k in range(truth.shape[-1])
        ]
    )


def dice(fractions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Dice (T,) of the most probable tissues of a map with discrete labels.

    The published rule: a voxel is of the tissue with the largest fraction, of background where
    none exceeds `LEAST`; the reference is a discrete brain model, not the true fractions, so that
    even those score below 1.
    """
    found = crisp(fractions, LEAST)
    pairs = [(found == k, labels == k) for k in range(fractions.shape[-1])]
    return np.array([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs])


def scores(found: np.ndarray, phantom) -> np.ndarray:
    """Scores (4, T): Dice, Dice over that of the true maps, PSNR, SSIM."""
    truth = phantom.fractions
    of_labels = dice(found, phantom.labels)
    ceiling = dice(truth, phantom.labels)
    return np.stack([of_labels, of_labels / ceiling, psnr(found, truth), ssim(found, truth)])
