"""TissueFractionModel: fractions of tissues from images and their sequences."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.tissue_fractions.chunk import (
    MOST_VOXELS,
    FractionFitChunk,
    NuisanceErrors,
    as_arrays,
    fraction_layout,
)
from dipy_spinverse.tissue_fractions.contrasts import Contrasts, contrasts_of
from dipy_spinverse.tissue_fractions.fit import TissueFractionFit
from dipy_spinverse.tissue_fractions.markov_random_field import (
    NeighbourGraph,
    markov_field_samples,
)
from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator, simulator_of
from dipy_spinverse.tissue_fractions.separability import Separability, separability
from dipy_spinverse.tissue_fractions.sequences import Sequence
from dipy_spinverse.tissue_fractions.shared_parameters import (
    UNKNOWNS,
    FieldMaps,
    SharedParameterEstimator,
    SignalTables,
    polynomials,
)
from dipy_spinverse.tissue_fractions.signal_table import axes_of, table_of
from dipy_spinverse.tissue_fractions.simplex_posterior import (
    MOST_TISSUES,
    face_prior_probabilities,
)
from dipy_spinverse.tissue_fractions.tissues import CONSTANTS, Tissue, constants_of, tissues_at
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.image import Image, Voxels, image_of, per_voxel
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.statistics import summary
from dipy_spinverse.voxels.status import Status

_N_DRAWS = 256
_B1_MARGIN = 3.0  # standard deviations
_LIKE_NOTHING_KNOWN = 0.29  # standard deviation of a uniform fraction
_TOO_NARROW = (
    " Intervals are too narrow: voxels are taken to err in B1 and constants on their own."
)


class TissueFractionModel(VoxelModel):
    """Voxels as mixtures of tissues whose signals a simulator of MR images gives.

    ``image_c = S0 |sum_t f_t S_tc(B1)|``: signals, not parameters, are mixed. With all else known
    the fractions are least squares over a simplex, with a background of no signal; what all
    voxels share and is unknown is found before, from all of them.

    Parameters
    ----------
    sequences : sequence of Sequence, of their descriptions, or Contrasts
        Of the C images; see :func:`sequence_from`.
    tissues : sequence of Tissue, optional
        Up to five, of which up to three and background, or four, mix in a voxel; CSF, grey and
        white matter at 3 T where not given.
    simulator : MRSimulator, optional
        Where not given, :class:`SignalEquations`; of Pulseq files, `MRzeroSimulator`.
    unknown : sequence of {"scale", "bias", "b1", "constants"}, optional
        What is found from the images: the scale of the data, a smooth receive sensitivity, a
        smooth transmit field (of one image: a constant one), the proton densities and relaxation
        times of tissues.
    constants_error : float, optional
        Relative standard deviation of tissue constants about the given ones. Intervals hold it.
    b1_error : float, optional
        Standard deviation of the relative transmit field about the given one. Intervals hold it.
    order : int, optional
        Of the polynomials of smooth fields.
    likelihood : {"rician", "gaussian"}, optional
        Of magnitudes.
    smoothness : float, optional
        How alike neighbouring voxels are thought to be, for one or few contrasts: the logarithm
        of how much less probable two neighbours are that have no tissue in common than two that
        are alike; 2 suits brains at 2 to 3 mm. Errors of B1 and constants count as each voxel's
        own, and neighbours that err alike confirm each other: one contrast needs a known B1.

    Raises
    ------
    ValueError
        No sequences, more than five tissues, tissues of one name, unknown options.

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
        unknown: Sequences[str] = ("scale", "bias"),
        constants_error: float = 0.0,
        b1_error: float = 0.0,
        order: int = 4,
        likelihood: str = "rician",
        smoothness: float = 0.0,
    ):
        self.tissues = tuple(tissues_at(3) if tissues is None else tissues)
        names = [tissue.name for tissue in self.tissues]
        if not 1 <= len(names) <= MOST_TISSUES or len({*names, "background"}) <= len(names):
            raise ValueError(
                f"tissues has the names {names}; give one to {MOST_TISSUES}, each with its own "
                "name, none of them background."
            )
        wrong = sorted(set(unknown) - set(UNKNOWNS))
        if wrong:
            raise ValueError(f"unknown has {wrong}; give some of {UNKNOWNS}.")
        if likelihood not in ("rician", "gaussian"):
            raise ValueError(f"likelihood is {likelihood!r}; use 'rician' or 'gaussian'.")
        for name, error in (("constants_error", constants_error), ("b1_error", b1_error)):
            part = name.removesuffix("_error")
            if not 0 <= error < np.inf or (error == 0 and part in unknown):
                raise ValueError(
                    f"{name} is {error}; give a standard deviation, above 0 where {part} is "
                    "unknown."
                )
        if not 0 <= smoothness < np.inf:
            raise ValueError(f"smoothness is {smoothness}; give 0 or a number above.")
        self.acquisition = contrasts_of(sequences)
        self.simulator = simulator_of(self.sequences) if simulator is None else simulator
        self.unknown, self.likelihood, self.order = tuple(unknown), likelihood, int(order)
        self.constants_error, self.b1_error = float(constants_error), float(b1_error)
        self.smoothness = float(smoothness)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Of the images."""
        return self.acquisition.sequences

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the tissues, and "background"."""
        return (*(tissue.name for tissue in self.tissues), "background")

    def acquisition_of(self, gtab: Any, te: Any = None, **_: Any) -> Contrasts:
        """Contrasts of sequences, which stand in the place of a gradient table."""
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
            Magnitudes, in the order of the sequences, on one scale.
        mask : array-like (...), optional
            Voxels to fit; all where not given. What is shared is found from them: give the head.
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel; found from what fractions leave of
            the images where not given.
        b1, b0, sensitivity : float or array-like (...), optional
            Transmit field over the nominal one, off-resonance (Hz), and receive sensitivity. A
            smooth correction to b1 and sensitivity is found where they are `unknown`.
        %(n_draws)s
        %(engine)s
        %(n_jobs)s
        %(verbose)s
        %(journal)s
        %(max_memory)s

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        check_number("n_draws", n_draws, 0)
        if n_draws == 0 and self.smoothness:
            raise ValueError(
                f"n_draws is 0, smoothness {self.smoothness}; neighbours are in the draws only: "
                "give more draws, or no smoothness."
            )
        how = Engine(engine, n_jobs, verbose, journal, max_memory)
        shape = np.shape(data)[:-1]
        given = {"b1": b1, "b0": b0, "sensitivity": sensitivity}
        own = {name: per_voxel(name, x, shape) for name, x in given.items()}
        for name in ("b1", "sensitivity"):
            if not (own[name] > 0).all():
                raise ValueError(f"{name} has values that are not positive; give them above 0.")
        image = image_of(data, mask, sigma, self.acquisition, own=own, max_memory=max_memory)
        model, image, fit_chunk = self._calibrated(image, n_draws)
        kept = fraction_layout(self.maps, posterior=n_draws > 0, together=fit_chunk.together)
        status, values = fit_image(
            image, fit_chunk, kept, how, most=MOST_VOXELS, model=self,
            options={"n_draws": n_draws, "sigma": sigma, **given},
        )  # fmt: skip
        if fit_chunk.together:
            likelihood = values.pop("gram"), values.pop("projection")
            neighbours = NeighbourGraph.on_grid(image.rows, image.shape)
            draws = markov_field_samples(
                *likelihood, fit_chunk.share, neighbours, self.smoothness, n_draws
            )
            for k, name in enumerate(self.maps):
                values |= summary({name: draws[..., k]})
        open_ = np.zeros(status.shape, dtype=bool)
        open_.reshape(-1)[image.rows] = values["widest_std"] > _LIKE_NOTHING_KNOWN
        open_ &= status == Status.CONVERGED
        status[open_] = Status.TISSUES_NOT_SEPARATED
        if open_.any():
            snr = float(np.median(image.voxels.S0[:, 0] / values["sigma"]))
            narrow = self.smoothness > 0 and max(self.b1_error, self.constants_error) > 0
            warnings.warn(
                f"images do not separate the tissues in {open_.sum()} voxels: "
                f"{model.separability(snr)}." + narrow * _TOO_NARROW,
                stacklevel=2,
            )
        return TissueFractionFit(model, status, values)

    def separability(self, snr: float) -> Separability:
        """Which tissues the images separate least, and which further image would help.

        Parameters
        ----------
        snr : float
            Mean signal of the images over the noise.
        """
        return separability(self.sequences, self.tissues, self.simulator, snr)

    def _calibrated(self, image: Image, n_draws: int):
        """Model and image with what voxels share, and the fit of their chunks."""
        voxels = image.voxels
        basis = polynomials(_places(image), self.order)
        own = voxels.own
        fields = FieldMaps(own["b1"], own["b0"], own["sensitivity"], basis)
        tables = SignalTables.over(
            self.simulator, self.sequences, fields, _B1_MARGIN * self.b1_error,
            sloped=self.constants_error > 0,
        )  # fmt: skip
        estimation = SharedParameterEstimator(
            tables, self.unknown, self.constants_error, self.b1_error,
            self.likelihood == "rician",
        )  # fmt: skip
        sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma)
        if len(voxels):
            shared, noise, freedom = estimation(
                torch.tensor(voxels.signals), sigma, fields, constants_of(self.tissues)
            )
        else:
            shared, noise, freedom = estimation.beforehand(constants_of(self.tissues), basis), 1, 0
        if sigma is None:
            level = np.full(len(voxels), float(noise))
            image = replace(image, noise=level, freedom=freedom)
            voxels = replace(voxels, sigma=level)
        own = {
            "b1": shared.b1_of(fields), "b0": fields.b0,
            "scale": shared.scale(fields) / voxels.S0[:, 0], "given_b1": fields.b1, "basis": basis,
        }  # fmt: skip
        image = replace(image, voxels=replace(voxels, own=own))
        table, by_constants = tables(shared.constants)
        fit_chunk = FractionFitChunk(
            self.maps, table, by_constants, NuisanceErrors.of(shared), None, n_draws,
            self.likelihood == "rician", self.smoothness > 0,
        )  # fmt: skip
        if n_draws and len(voxels):
            fit_chunk = replace(fit_chunk, share=_shares(fit_chunk, image.voxels))
        return self._with_constants(shared.constants), image, fit_chunk

    def _with_constants(self, constants):
        other = copy(self)
        other.tissues = tuple(
            replace(tissue, **dict(zip(CONSTANTS, row.tolist(), strict=True)))
            for tissue, row in zip(self.tissues, constants, strict=True)
        )
        return other

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: Contrasts
    ) -> np.ndarray:
        """Magnitudes (V, C) of the likeliest fractions over the scale."""
        names = [tissue.name for tissue in self.tissues]
        fractions = np.stack([values[f"{name}_likeliest"] for name in names], axis=1)
        return self._mixed(fractions, values["b1"], values["b0"], acquisition)

    def _mixed(self, fractions, b1, b0, acquisition):
        axes = axes_of(b1, b0, 0.0)
        table = table_of(self.simulator, acquisition.sequences, constants_of(self.tissues), axes)
        parts = [
            np.einsum("vt,vtc->vc", fractions[rows], table.columns(b1[rows], b0[rows]).numpy())
            for rows in np.array_split(np.arange(len(b1)), len(b1) // MOST_VOXELS + 1)
        ]
        return np.abs(np.concatenate(parts))

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
            Of each tissue by name; the rest is background.
        sequences : optional
            The model's own where not given.
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
        parts = [np.asarray(fractions[name], dtype=float) for name in names]
        *parts, S0, b1, b0 = np.broadcast_arrays(*parts, S0, b1, b0)
        flat = np.stack([part.reshape(-1) for part in parts], axis=1)
        signals = self._mixed(flat, b1.reshape(-1) * 1.0, b0.reshape(-1) * 1.0, acquisition)
        return S0[..., None] * signals.reshape((*np.shape(b1), len(acquisition)))

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Arguments of the model."""
        if type(self.simulator) is not type(simulator_of(self.sequences)):
            raise ValueError(
                f"simulator is a {type(self.simulator).__name__}, which no file holds; a fit with "
                "the one that is taken where none is given can be saved."
            )
        names = ("unknown", "constants_error", "b1_error", "order", "likelihood", "smoothness")
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
        tissues = [Tissue(**each) for each in settings["tissues"]]
        return cls(acquisition, **{**settings, "tissues": tissues})


def _places(image: Image) -> np.ndarray:
    """Coordinates (V, D) from -1 to 1 along the axes of more than one voxel."""
    axes = np.unravel_index(image.rows, image.shape) if image.shape else ()
    places = [2 * x / (n - 1) - 1 for x, n in zip(axes, image.shape, strict=True) if n > 1]
    return np.stack(places, axis=1) if places else np.zeros((len(image.rows), 0))


def _shares(fit_chunk: FractionFitChunk, voxels: Voxels) -> np.ndarray:
    """Prior probabilities of mixtures of which tissues, from voxels spread over the image."""
    n = len(voxels)
    rows = np.arange(n) if n <= MOST_VOXELS else np.linspace(0, n - 1, MOST_VOXELS).astype(int)
    normal = fit_chunk.solved(voxels[rows].over_S0())[3]
    return face_prior_probabilities(*as_arrays(normal))
