"""TissueFractionModel: fractions of tissues from images and their sequences."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.tissue_fractions.calibration import calibrate
from dipy_spinverse.tissue_fractions.chunk import (
    MOST_VOXELS,
    FractionFitChunk,
    fraction_layout,
    pairs_of,
    statistics_of_samples,
)
from dipy_spinverse.tissue_fractions.contrasts import Contrasts, contrasts_of
from dipy_spinverse.tissue_fractions.markov_random_field import (
    NeighbourGraph,
    markov_field_samples,
)
from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.separability import most_helpful
from dipy_spinverse.tissue_fractions.sequences import PulseqFile, Sequence
from dipy_spinverse.tissue_fractions.shared_parameters import UNKNOWNS
from dipy_spinverse.tissue_fractions.signal_equations import SignalEquations
from dipy_spinverse.tissue_fractions.signal_table import SignalSimulation, axes_of
from dipy_spinverse.tissue_fractions.simplex_posterior import MOST_TISSUES
from dipy_spinverse.tissue_fractions.tissues import CONSTANTS, Tissue, constants_of, tissues_at
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.image import image_of, per_voxel
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.status import Status

_N_DRAWS = 256  # samples: the ends of a 95 % interval are their 6th from either end
_NOT_SEPARATED = 0.2  # posterior std of an exchange; of a uniform fraction it is 0.29
_FEW_IMAGES = 3  # with a spatial prior by default: more separate three tissues voxel by voxel
_N_SAMPLES = 16  # of shared parameters under a spatial prior, in opposite pairs; by hand
# Prior errors of what is unknown. Relaxation times of a tissue differ by this much between groups:
# T1 of white matter is 0.6 to 1.1 s at 3 T (https://doi.org/10.48550/arXiv.2409.05318), 0.7 to
# 1.7 s in all studies (https://doi.org/10.1016/j.mri.2016.08.021). B1 at 3 T differs by 20 % in
# the brain (https://doi.org/10.1002/mrm.20321).
_CONSTANTS_ERROR, _B1_ERROR = 0.2, 0.1


class TissueFractionFit(VoxelFit):
    """Result of :meth:`TissueFractionModel.fit`; see :class:`VoxelFit` for the maps.

    ``fit.model.tissues`` are the tissues with the constants that were used, estimated if they
    were unknown.

    Attributes
    ----------
    MAPS : tuple of str
        Names of the tissues, and "background", which has no signal.
    S0 : ndarray (...)
        Signal of water of unit magnetisation in the first image; `S0_per_te` (..., C) in each.
    b1 : ndarray (...)
        Transmit field over the nominal one, known or estimated.
    widest_std : ndarray (...)
        Posterior standard deviation of the least determined exchange of two tissues. Above 0.2
        (0.29 is that of a uniform fraction) the status is `TISSUES_NOT_SEPARATED`.
    """

    def __init__(
        self, model: TissueFractionModel, status: np.ndarray, values: dict[str, np.ndarray]
    ):
        super().__init__(model, status, values)
        self.MAPS = model.maps


class TissueFractionModel(VoxelModel):
    """Voxels as mixtures of tissues whose signals a simulator of MR images provides.

    ``image_c = S0 |sum_t f_t S_tc(B1)|``: signals are mixed, not parameters [1]_. Given all other
    parameters, fractions are maximum likelihood estimates on the simplex, with a background of no
    signal; unknown parameters that all voxels share are estimated before, from all voxels.

    Parameters
    ----------
    sequences : sequence of Sequence, of their descriptions, or Contrasts
        Of the C images; see :func:`sequence_from`.
    tissues : sequence of Tissue, optional
        Up to five, of which up to three and background, or four, mix in a voxel. Default: CSF,
        grey and white matter at 3 T.
    simulator : MRSimulator, optional
        Default: :class:`SignalEquations`; for Pulseq files `MRzeroSimulator`.
    unknown : sequence of {"scale", "bias", "b1", "constants"}, optional
        Estimated from the images, or averaged over where these do not determine them: the scale
        and a smooth receive sensitivity of each image, a smooth transmit field, proton densities
        and relaxation times. Default: all.
    constants_error : float, optional
        Relative standard deviation of relaxation times, and 0.3 of it of proton densities.
        Default: 0.2 if unknown, the spread of published values, else 0.
    b1_error : float, optional
        Standard deviation of the relative transmit field. Default: 0.1 if unknown, else 0.
    smoothness : float, optional
        Spatial prior: log ratio of the prior densities of neighbours with equal fractions and
        neighbours with no tissue in common. Default: estimated for up to three images, up to 2;
        0 for more.
    series : sequence of int, optional
        A number for each image: images of equal number, such as echoes of one acquisition, share
        scale, bias field and noise level. Default: each image has its own.

    Raises
    ------
    ValueError
        No sequences, more than five tissues, tissues of equal names, unknown options.

    References
    ----------
    .. [1] Gupta et al. (2024), https://doi.org/10.48550/arXiv.2404.14739

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse.tissue_fractions import InversionPreparation, SpoiledGradientEcho
    >>> sequences = [SpoiledGradientEcho(0.0056, 0.0025, 5, InversionPreparation(ti), 64, 32)
    ...              for ti in (0.1, 0.5, 1.0, 2.7)]
    >>> model = TissueFractionModel(sequences, unknown=())
    >>> images = model.signals({"csf": 0.1, "gm": 0.6, "wm": 0.3})
    >>> fit = model.fit(images, sigma=1e-5)
    >>> round(float(fit.gm), 3)
    0.6
    """

    Fit = TissueFractionFit
    acquisition: Contrasts

    def __init__(
        self,
        sequences: Contrasts | Sequences[Sequence | Mapping],
        tissues: Sequences[Tissue] | None = None,
        *,
        simulator: MRSimulator | None = None,
        unknown: Sequences[str] = UNKNOWNS,
        constants_error: float | None = None,
        b1_error: float | None = None,
        smoothness: float | None = None,
        series: Sequences[int] | None = None,
    ):
        self.tissues = tuple(tissues_at(3) if tissues is None else tissues)
        names = [tissue.name for tissue in self.tissues]
        if not 1 <= len(names) <= MOST_TISSUES or len({*names, "background"}) <= len(names):
            raise ValueError(
                f"tissues has the names {names}; give one to {MOST_TISSUES} of different names, "
                "none of them background."
            )
        invalid = sorted(set(unknown) - set(UNKNOWNS))
        if invalid:
            raise ValueError(f"unknown has {invalid}; give some of {UNKNOWNS}.")
        if constants_error is None:
            constants_error = _CONSTANTS_ERROR if "constants" in unknown else 0.0
        if b1_error is None:
            b1_error = _B1_ERROR if "b1" in unknown else 0.0
        for quantity, error in (("constants", constants_error), ("b1", b1_error)):
            if not 0 <= error < np.inf or (error == 0 and quantity in unknown):
                raise ValueError(
                    f"{quantity}_error is {error}; give a standard deviation, above 0 if "
                    f"{quantity} is unknown."
                )
        if smoothness is not None and not 0 <= smoothness < np.inf:
            raise ValueError(f"smoothness is {smoothness}; give a number of at least 0.")
        self.acquisition = contrasts_of(sequences)
        n = len(self.sequences)
        self.series = tuple(range(n)) if series is None else tuple(int(k) for k in series)
        if len(self.series) != n:
            raise ValueError(f"series is {series}; give one number for each of {n} images.")
        self.simulator = _default_simulator(self.sequences) if simulator is None else simulator
        self.unknown = tuple(unknown)
        self.constants_error, self.b1_error = float(constants_error), float(b1_error)
        self.smoothness = smoothness if smoothness is None else float(smoothness)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Sequences of the images."""
        return self.acquisition.sequences

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the tissues, and "background"."""
        return (*(tissue.name for tissue in self.tissues), "background")

    def acquisition_of(self, gtab: Any, te: Any = None, **_: Any) -> Contrasts:
        """Contrasts of sequences, which replace a gradient table."""
        return contrasts_of(gtab)

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        b1: ArrayLike = 1.0,
        b0: ArrayLike = 0.0,
        sensitivity: ArrayLike = 1.0,
        n_draws: int = _N_DRAWS,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> TissueFractionFit:
        """Fit voxels.

        Parameters
        ----------
        data : array-like (..., C)
            Magnitudes, in the order of the sequences.
        mask : array-like (...), optional
            Voxels to fit, from which shared parameters are estimated: give the head. Default: all.
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel, of all images. Default: estimated, a
            noise level for each image; `fit.sigma` is that of the first.
        b1, b0, sensitivity : float or array-like (...), optional
            Transmit field over the nominal one, off-resonance (Hz), and receive sensitivity. A
            smooth correction of b1 and sensitivity is estimated if they are `unknown`.
        %(n_draws)s
        %(execution)s

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        check_number("n_draws", n_draws, 0)
        if n_draws == 0 and self.smoothness:
            raise ValueError(
                f"n_draws is 0, smoothness {self.smoothness}; the spatial prior needs samples: "
                "give more draws, or no smoothness."
            )
        smoothness = self.smoothness
        if smoothness is None and (n_draws == 0 or len(self.sequences) > _FEW_IMAGES):
            smoothness = 0.0
        n_samples = min(_N_SAMPLES, n_draws) if smoothness != 0 else 0
        shape = np.shape(data)[:-1]
        fields = {"b1": b1, "b0": b0, "sensitivity": sensitivity}
        maps = {name: per_voxel(name, field, shape) for name, field in fields.items()}
        for name in ("b1", "sensitivity"):
            if not (maps[name] > 0).all():
                raise ValueError(f"{name} has values that are not positive; give them above 0.")
        image = image_of(
            data,
            mask,
            sigma,
            self.acquisition,
            attributes=maps,
            max_memory=max_memory,
            verbose=verbose,
        )
        calibration = calibrate(
            image, self.simulator, self.sequences, constants_of(self.tissues),
            unknown=self.unknown, constants_error=self.constants_error, b1_error=self.b1_error,
            groups=np.unique(self.series, return_inverse=True)[1], n_samples=n_samples,
        )  # fmt: skip
        image, model = calibration.image, self._with_constants(calibration.likeliest[1].constants)
        layout = fraction_layout(
            self.maps, len(self.sequences), posterior=n_draws > 0, n_samples=n_samples
        )
        status, values = fit_image(
            image, FractionFitChunk(self.maps, calibration, n_draws), layout,
            Engine(engine, n_jobs, verbose, journal, max_memory), most=MOST_VOXELS, model=self,
            options={"n_draws": n_draws, "sigma": sigma, **fields},
        )  # fmt: skip
        if n_samples:
            normal = values.pop("gram"), values.pop("projection")
            graph = NeighbourGraph.on_grid(image.rows, image.shape)
            share = calibration.share.numpy()
            samples = markov_field_samples(*normal, share, graph, smoothness, n_draws)
            mean = (equations.mean(axis=1) for equations in normal)
            values |= statistics_of_samples(self.maps, samples.transpose(1, 0, 2), *mean)
        not_separated = np.zeros(status.shape, dtype=bool)
        not_separated.reshape(-1)[image.rows] = values["widest_std"] > _NOT_SEPARATED
        not_separated &= status == Status.CONVERGED
        status[not_separated] = Status.TISSUES_NOT_SEPARATED
        pairs = values.pop("widest_pair")[not_separated.reshape(-1)[image.rows]]
        if not_separated.any():
            snr = float(np.median(image.voxels.S0[:, 0] / values["sigma"]))
            candidate = most_helpful(self.sequences, model.tissues, self.simulator, snr)
            counts = [
                f"{self.maps[a]} from {self.maps[b]} in {(pairs == k).sum()}"
                for k, (a, b) in enumerate(pairs_of(len(self.maps)))
                if (pairs == k).any()
            ]
            warn(
                f"images do not separate the tissues in {not_separated.sum()} voxels: "
                f"{', '.join(counts)}; {candidate} would help most."
            )
        return TissueFractionFit(model, status, values)

    def _with_constants(self, constants):
        calibrated = copy(self)
        calibrated.tissues = tuple(
            replace(tissue, **dict(zip(CONSTANTS, row.tolist(), strict=True)))
            for tissue, row in zip(self.tissues, constants, strict=True)
        )
        return calibrated

    def labels_at(self, acquisition: Contrasts) -> np.ndarray:
        """Index (M,) of the image whose scale others have: of the same sequence, or the first."""
        known = {sequence: k for k, sequence in reversed([*enumerate(self.sequences)])}
        return np.array([known.get(sequence, 0) for sequence in acquisition.sequences], dtype=int)

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: Contrasts
    ) -> np.ndarray:
        """Magnitudes (V, C) of the likeliest fractions, for unit scale."""
        names = [tissue.name for tissue in self.tissues]
        fractions = np.stack([values[f"{name}_likeliest"] for name in names], axis=1)
        return self._mixed(fractions, values["b1"], values["b0"], acquisition)

    def _mixed(self, fractions, b1, b0, acquisition):
        """Magnitudes (V, C) of mixtures (V, T)."""
        axes = axes_of(b1, b0, 0.0)
        simulation = SignalSimulation(self.simulator, acquisition.sequences, axes)
        table = simulation.table(constants_of(self.tissues))
        blocks = [
            np.einsum("vt,vtc->vc", fractions[v], table.pure_signals(b1[v], b0[v]).numpy())
            for v in np.array_split(np.arange(len(b1)), len(b1) // MOST_VOXELS + 1)
        ]
        return np.abs(np.concatenate(blocks))

    def signals(
        self,
        fractions: Mapping[str, ArrayLike],
        sequences: Contrasts | Sequences[Sequence | Mapping] | None = None,
        *,
        S0: ArrayLike = 1.0,
        b1: ArrayLike = 1.0,
        b0: ArrayLike = 0.0,
    ) -> np.ndarray:
        """Noise-free magnitudes (..., C) of mixtures.

        Parameters
        ----------
        fractions : mapping of array-like (...)
            Of each tissue by name; background fills them up to 1.
        sequences : optional
            Default: those of the model.
        S0, b1, b0 : float or array-like (...), optional

        Raises
        ------
        ValueError
            Missing tissues.
        """
        names = [tissue.name for tissue in self.tissues]
        missing = sorted(set(names) - set(fractions))
        if missing:
            raise ValueError(f"fractions lack {missing}; give all of {names}.")
        acquisition = self.acquisition if sequences is None else self.acquisition_of(sequences)
        of_tissues = [np.asarray(fractions[name], dtype=float) for name in names]
        *of_tissues, S0, b1, b0 = np.broadcast_arrays(*of_tissues, S0, b1, b0)
        mixtures = np.stack([fraction.reshape(-1) for fraction in of_tissues], axis=1)
        signals = self._mixed(mixtures, b1.reshape(-1) * 1.0, b0.reshape(-1) * 1.0, acquisition)
        return S0[..., None] * signals.reshape((*np.shape(b1), len(acquisition)))

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Arguments of the model."""
        if type(self.simulator) is not type(_default_simulator(self.sequences)):
            raise ValueError(
                f"simulator is a {type(self.simulator).__name__}, which cannot be saved; only "
                "fits with the default simulator can."
            )
        names = ("unknown", "constants_error", "b1_error", "smoothness", "series")
        tissues = [asdict(tissue) for tissue in self.tissues]
        return {"tissues": tissues, **{name: getattr(self, name) for name in names}}, {}

    @classmethod
    def acquisition_from(cls, arrays: Mapping[str, np.ndarray]) -> Contrasts:
        """Contrasts of a file."""
        return Contrasts.from_arrays(arrays)

    @classmethod
    def from_settings(
        cls, acquisition: Contrasts, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> TissueFractionModel:
        """The model of :meth:`settings`."""
        tissues = [Tissue(**constants) for constants in settings["tissues"]]
        return cls(acquisition, **{**settings, "tissues": tissues})


def _default_simulator(sequences: Sequences[Sequence]) -> MRSimulator:
    """The fastest that supports all sequences."""
    if any(isinstance(sequence, PulseqFile) for sequence in sequences):
        from dipy_spinverse.tissue_fractions.mrzero import MRzeroSimulator

        return MRzeroSimulator()
    return SignalEquations()
