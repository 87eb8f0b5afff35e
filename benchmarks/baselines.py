"""The models that the benchmarks compare with: DTI, and stick + zeppelin + ball."""

from __future__ import annotations

import numpy as np
from dipy.reconst.dti import TensorModel
from scipy.optimize import least_squares

from dipy_spinverse import Acquisition

_STARTS = ((0.3, 0.1), (0.7, 0.1), (0.5, 0.5))
_LARGEST_DIFFUSIVITY = 4.0  # um^2/ms, above free water
_LEAST_DIFFUSIVITY = 0.01


def fit_dti(acquisition: Acquisition, signals: np.ndarray, fitted: np.ndarray):
    """Diffusion tensor by weighted least squares (`dipy.reconst.dti`).

    Parameters
    ----------
    acquisition : Acquisition
    signals : ndarray (M,)
    fitted : ndarray (M,) of bool
        The measurements to fit; those at large b should not be among them.

    Returns
    -------
    predicted : ndarray (M,)
        For all measurements. The tensor is fitted to signals over the mean b0 of their echo time,
        then the amplitude of each echo time by linear least squares.
    estimates : dict
        `fa`, and `md` in um^2/ms. Elements of the tensor to which the encodings are blind (those
        off the plane, where all lie in one) are those of least norm.
    """
    relative = signals.copy()
    for b0 in acquisition.b0_per_te:
        same_te = acquisition.te == acquisition.te[b0][0]
        relative[same_te] /= signals[b0 & fitted].mean()
    gtab = acquisition.subset(fitted).to_gtab()
    fit = TensorModel(gtab, fit_method="WLS", min_signal=1e-4).fit(relative[fitted])
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    directions = acquisition.directions
    along = np.einsum("mi,ij,mj->m", directions, fit.quadratic_form, directions)
    shape = np.exp(-b * 1e3 * along)
    estimates = {"fa": float(fit.fa), "md": 1e3 * float(fit.md)}
    return with_amplitudes(acquisition, shape, signals, fitted), estimates


def fit_stick_zeppelin_ball(
    acquisition: Acquisition,
    signals: np.ndarray,
    fitted: np.ndarray,
    *,
    orientation: np.ndarray,
    free_diffusivity: float,
):
    """Stick + zeppelin + ball with three parameters, by least squares.

    S / S0(TE) = (1 - f) (v exp(-b D c^2) + (1 - v) exp(-b (D c^2 + (1 - v) D (1 - c^2))))
                 + f exp(-b D_free)

    with c the cosine between direction and `orientation`, and the tortuosity (1 - v) D of the
    zeppelin as in NODDI [1]_. Fitted are v, f and D; orientation and D_free are given, and S0 of
    each echo time is solved for linearly inside. The best of three starts.

    Parameters
    ----------
    acquisition : Acquisition
    signals : ndarray (M,)
    fitted : ndarray (M,) of bool
    orientation : ndarray (3,)
        Unit vector.
    free_diffusivity : float
        um^2/ms.

    Returns
    -------
    predicted : ndarray (M,)
        For all measurements.
    estimates : dict
        `stick_fraction` (1 - f) v, `ball_fraction` f, `diffusivity` D (um^2/ms).

    References
    ----------
    .. [1] Zhang et al., NeuroImage 61 (2012) 1000, https://doi.org/10.1016/j.neuroimage.2012.03.072
    """
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    along = (acquisition.directions @ orientation) ** 2
    ball = np.exp(-b * free_diffusivity)

    def shape(parameters):
        v, f, diffusivity = parameters
        stick = np.exp(-b * diffusivity * along)
        zeppelin = np.exp(-b * diffusivity * (along + (1 - v) * (1 - along)))
        return (1 - f) * (v * stick + (1 - v) * zeppelin) + f * ball

    def residual(parameters):
        predicted = with_amplitudes(acquisition, shape(parameters), signals, fitted)
        return (predicted - signals)[fitted]

    bounds = ([0, 0, _LEAST_DIFFUSIVITY], [1, 1, _LARGEST_DIFFUSIVITY])
    fits = [
        least_squares(residual, (*start, free_diffusivity / 2), bounds=bounds) for start in _STARTS
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    v, f, diffusivity = best
    estimates = {
        "stick_fraction": float((1 - f) * v),
        "ball_fraction": float(f),
        "diffusivity": float(diffusivity),
    }
    return with_amplitudes(acquisition, shape(best), signals, fitted), estimates


def with_amplitudes(acquisition: Acquisition, shape, signals, fitted) -> np.ndarray:
    """Signals (M,) of least squares a_TE shape, with one amplitude for each echo time."""
    index, n = acquisition.te_index, acquisition.echo_times.size
    weighted = np.where(fitted, shape, 0)
    products = np.bincount(index, weighted * signals, n)
    squares = np.bincount(index, weighted * shape, n)
    return (products / squares)[index] * shape
