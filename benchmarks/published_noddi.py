"""Signals of published NODDI by direct quadrature, in NumPy alone: no code of the package.

    S = fwf exp(-b D_free) + (1 - fwf) (ndi S_in + (1 - ndi) S_out)

Neurites are sticks in directions n of a Watson (or Bingham) distribution; water around them has
one tensor, the average of D_par n n^T + D_par (1 - ndi) (1 - n n^T) over that distribution.
Zhang et al., NeuroImage 61 (2012) 1000, https://doi.org/10.1016/j.neuroimage.2012.03.072
"""

from __future__ import annotations

import numpy as np

N_POLAR, N_AZIMUTH = 60, 40


def sphere() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (Q, 3) all over the half with z > 0, and weights (Q,)."""
    x, w = np.polynomial.legendre.leggauss(N_POLAR)
    z, w = 0.5 * (x + 1), 0.5 * w
    azimuth = (np.arange(N_AZIMUTH) + 0.5) * 2 * np.pi / N_AZIMUTH
    sine = np.sqrt(1 - z**2)[:, None]
    vectors = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth),
                        np.broadcast_to(z[:, None], (N_POLAR, N_AZIMUTH))], axis=-1)  # fmt: skip
    return vectors.reshape(-1, 3), np.repeat(w / N_AZIMUTH, N_AZIMUTH)


def published_signals(
    b: np.ndarray,
    directions: np.ndarray,
    truth: dict[str, np.ndarray],
    *,
    parallel: float = 1.7,
    free: float = 3.0,
) -> np.ndarray:
    """Noise-free signals (V, M) over those without diffusion.

    Parameters
    ----------
    b : ndarray (M,)
        ms/um^2.
    directions : ndarray (M, 3)
    truth : mapping
        "ndi", "odi", "fwf" (V,), "axis" (V, 3); for Bingham's distribution also "fanning" (V,),
        from 0 to 1 of kappa, and "axis_fan" (V, 3).
    parallel, free : float, optional
        um^2/ms.
    """
    vectors, weights = sphere()
    result = np.empty((len(truth["ndi"]), len(b)))
    for v, axis in enumerate(truth["axis"]):
        helper = truth["axis_fan"][v] if "axis_fan" in truth else np.eye(3)[np.abs(axis).argmin()]
        fan = helper - (helper @ axis) * axis
        fan /= np.linalg.norm(fan)
        frame = np.stack([fan, np.cross(axis, fan), axis])
        kappa = 1 / np.tan(0.5 * np.pi * truth["odi"][v])
        beta = kappa * truth["fanning"][v] if "fanning" in truth else 0.0
        density = weights * np.exp(kappa * (vectors[:, 2] ** 2 - 1) + beta * vectors[:, 0] ** 2)
        density /= density.sum()
        neurites = vectors @ frame
        inside = np.exp(-parallel * b * (neurites @ directions.T) ** 2).T @ density
        ndi, fwf = truth["ndi"][v], truth["fwf"][v]
        spread = np.einsum("q,qi,qj->ij", density, neurites, neurites)
        tensor = parallel * (1 - ndi) * np.eye(3) + parallel * ndi * spread
        outside = np.exp(-b * np.einsum("mi,ij,mj->m", directions, tensor, directions))
        tissue = ndi * inside + (1 - ndi) * outside
        result[v] = fwf * np.exp(-b * free) + (1 - fwf) * tissue
    return result


def tissue(n: int, seed: int = 5, *, fanning: bool = False) -> dict[str, np.ndarray]:
    """Parameters of grey and white matter: ndi .3-.9, odi .02-.6, fwf 0-.3, any axis."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    truth = {"ndi": rng.uniform(0.3, 0.9, n), "odi": rng.uniform(0.02, 0.6, n),
             "fwf": rng.uniform(0, 0.3, n), "axis": axes[:, 0]}  # fmt: skip
    return truth | ({"fanning": rng.uniform(0, 0.9, n), "axis_fan": axes[:, 1]} if fanning else {})
