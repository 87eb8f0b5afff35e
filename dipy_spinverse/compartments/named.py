"""The models that the field uses, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Parameter,
    complement,
    tortuosity,
)
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.signals.sizes import GAMMA_CYLINDERS
from dipy_spinverse.units import diffusivity_um2_per_ms

_LARGEST_DIAMETER = 20.0  # um
_LEAST_DIAMETER = 0.2  # um
_FREE = (0.1e-3, 3.2e-3)  # mm^2/s
Diffusivity = float | tuple[float, float] | str
_ODI = Parameter("odi", 0.01, 1.0, per_fibre=True)


class NODDIModel(CompartmentModel):
    """Neurite orientation dispersion and density imaging [1]_, with Bingham dispersion [2]_.

    Sticks that are dispersed about one axis, hindered water around them with tortuosity, and free
    water. Maps: `ndi` (share of sticks in tissue), `odi`, `fwf` (free water), `S0`, and `axis`;
    with ``dispersion="bingham"`` also `fanning`, and diffusivities that are fitted.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least two shells. Pulse timings are not needed.
    parallel_diffusivity, isotropic_diffusivity : float, (low, high) or "free", optional
        Diffusivities of tissue along its axis and of free water, mm^2/s: fixed, or fitted within
        bounds ("free": 0.1e-3 to 3.2e-3) and then a map. In fixed tissue about 0.6e-3 and 2e-3.
    dispersion : {"watson", "bingham"}, optional
        Distribution of neurite orientations; "bingham" for neurites that fan out in a plane.
    extra_cellular : {"averaged", "dispersed"}, optional
        Water outside of neurites: "averaged", as published, has one tensor, the average over all
        directions of the neurites; "dispersed" keeps the direction of those beside it, so that
        its signals are averaged.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Zhang et al., NeuroImage 61 (2012) 1000,
       https://doi.org/10.1016/j.neuroimage.2012.03.072
    .. [2] Tariq et al., NeuroImage 133 (2016) 207,
       https://doi.org/10.1016/j.neuroimage.2016.01.046

    Examples
    --------
    >>> import numpy as np
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse.compartments import NODDIModel
    >>> directions = np.random.default_rng(0).standard_normal((60, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> gtab = gradient_table(np.repeat([0, 1000, 2500], 20), bvecs=directions)
    >>> model = NODDIModel(gtab)
    >>> truth = {"ndi": 0.6, "odi": 0.2, "fwf": 0.1, "axis": [0, 0, 1]}
    >>> fit = model.fit(model.signals(truth), sigma=1e-3)
    >>> bool(abs(fit.ndi - 0.6) < 0.01)
    True
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        parallel_diffusivity: Diffusivity = 1.7e-3,
        isotropic_diffusivity: Diffusivity = 3e-3,
        dispersion: str = "watson",
        extra_cellular: str = "averaged",
        **kwargs: Any,
    ):
        if dispersion not in ("watson", "bingham"):
            raise ValueError(f'dispersion is {dispersion!r}; use "watson" or "bingham".')
        if extra_cellular not in ("averaged", "dispersed"):
            raise ValueError(
                f'extra_cellular is {extra_cellular!r}; use "averaged" or "dispersed".'
            )
        known, fitted = diffusivities(
            parallel_diffusivity=parallel_diffusivity, isotropic_diffusivity=isotropic_diffusivity
        )
        along = "parallel_diffusivity"
        bingham = dispersion == "bingham"
        dispersed = {"dispersion": dispersion, "odi": "odi"}
        dispersed |= {"fanning": "fanning"} if bingham else {}
        fanning = (Parameter("fanning", 0.0, 1.0, per_fibre=True),) if bingham else ()
        definition = Definition(
            "NODDI",
            (Parameter("ndi", 0.0, 1.0), _ODI, *fanning, *fitted),
            (
                Compartment("stick", "tissue", {"diffusivity": along}, share="ndi", **dispersed),
                Compartment(
                    "zeppelin",
                    "tissue",
                    {"parallel": along, "perpendicular": tortuosity(along, "ndi")},
                    share=complement("ndi"),
                    average="tensor" if extra_cellular == "averaged" else "signals",
                    **dispersed,
                ),
                Compartment("ball", "fwf", {"diffusivity": "isotropic_diffusivity"}),
            ),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            maps=("ndi", "odi", "fwf", *(p.name for p in (*fanning, *fitted))),
            min_shells=2,
            n_starts=4 if fitted else 1,
            curved=bool(fitted),
            arguments={
                "parallel_diffusivity": parallel_diffusivity,
                "isotropic_diffusivity": isotropic_diffusivity,
                "dispersion": dispersion,
                "extra_cellular": extra_cellular,
            },
        )
        super().__init__(gtab, definition, **kwargs)


class ActiveAxModel(CompartmentModel):
    """Minimal model of white-matter diffusion [1]_.

    Cylinders of one diameter with finite pulses, a zeppelin with tortuosity around them, free
    water, and still water. Maps: `axon_diameter` (um), `restricted_fraction` (cylinders),
    `free_water_fraction`, `dot_fraction`, `S0`, and `axis`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings and at least two shells.
    parallel_diffusivity, isotropic_diffusivity : float, (low, high) or "free", optional
        Diffusivities of tissue along its axis and of free water, mm^2/s: fixed, or fitted within
        bounds ("free": 0.1e-3 to 3.2e-3) and then a map. In fixed tissue about 0.6e-3 and 2e-3.
    dot : bool, optional
        Include a compartment of immobile water, as in fixed tissue.
    diameters : {"one", "gamma"}, optional
        "gamma": cylinders have a gamma distribution of diameters, of which `axon_diameter` is the
        mean and the map `diameter_spread` the standard deviation over the mean. The diameter of
        "one" is weighted with the volumes, and its intervals do not hold the mean.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Alexander et al., NeuroImage 52 (2010) 1374,
       https://doi.org/10.1016/j.neuroimage.2010.05.043

    Examples
    --------
    >>> fit = ActiveAxModel(gtab, parallel_diffusivity=0.6e-3).fit(data)  # doctest: +SKIP
    >>> fit.axon_diameter, fit.axon_diameter_low, fit.axon_diameter_high  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        parallel_diffusivity: Diffusivity = 1.7e-3,
        isotropic_diffusivity: Diffusivity = 3e-3,
        dot: bool = True,
        diameters: str = "one",
        **kwargs: Any,
    ):
        if diameters not in ("one", "gamma"):
            raise ValueError(f'diameters is {diameters!r}; use "one" or "gamma".')
        known, fitted = diffusivities(
            parallel_diffusivity=parallel_diffusivity, isotropic_diffusivity=isotropic_diffusivity
        )
        along = "parallel_diffusivity"
        gamma = diameters == "gamma"
        spread = (Parameter("diameter_spread", 0.05, 0.8),) if gamma else ()
        inside: dict[str, Any] = {"diffusivity": along, "diameter": "axon_diameter"}
        inside |= {"spread": "diameter_spread"} if gamma else {}
        tissue = (
            Compartment(
                GAMMA_CYLINDERS if gamma else "cylinder", "tissue", inside, share="axon_share"
            ),
            Compartment(
                "zeppelin",
                "tissue",
                {"parallel": along, "perpendicular": tortuosity(along, "axon_share")},
                share=complement("axon_share"),
            ),
            Compartment("ball", "free_water_fraction", {"diffusivity": "isotropic_diffusivity"}),
        )
        still = (Compartment("dot", "dot_fraction"),) if dot else ()
        definition = Definition(
            "ActiveAx",
            (
                Parameter("axon_diameter", _LEAST_DIAMETER, _LARGEST_DIAMETER, "um"),
                Parameter("axon_share", 0.0, 1.0),
                *spread,
                *fitted,
            ),
            (*tissue, *still),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            derived={"restricted_fraction": _restricted},
            maps=(
                "axon_diameter",
                "restricted_fraction",
                "free_water_fraction",
                *(c.pool for c in still),
                *(p.name for p in (*spread, *fitted)),
            ),
            min_shells=2,
            curved=gamma or bool(fitted),
            arguments={
                "parallel_diffusivity": parallel_diffusivity,
                "isotropic_diffusivity": isotropic_diffusivity,
                "dot": dot,
                "diameters": diameters,
            },
        )
        super().__init__(gtab, definition, **kwargs)


class ZCDModel(CompartmentModel):
    """Zeppelin, cylinder and dot [1]_.

    Diffusion along cylinders and zeppelin is the same and fitted, that across the zeppelin is
    free. Maps: `axon_diameter` (um), `restricted_fraction` (cylinders), `hindered_fraction`
    (zeppelin), `dot_fraction`, `parallel_diffusivity` and `perpendicular_diffusivity` (mm^2/s),
    `S0`, and `axis`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings and at least two shells.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Panagiotaki et al., NeuroImage 59 (2012) 2241,
       https://doi.org/10.1016/j.neuroimage.2011.09.081

    Examples
    --------
    >>> fit = ZCDModel(gtab).fit(data)  # doctest: +SKIP
    """

    def __init__(self, gtab: GradientTable | BaseAcquisition, **kwargs: Any):
        definition = Definition(
            "ZCD",
            (
                Parameter("axon_diameter", _LEAST_DIAMETER, _LARGEST_DIAMETER, "um"),
                Parameter("parallel_diffusivity", 0.1, 3.0, "mm^2/s"),
                Parameter("perpendicular_share", 0.0, 1.0),
            ),
            (
                Compartment(
                    "zeppelin",
                    "hindered_fraction",
                    {"parallel": "parallel_diffusivity", "perpendicular": _across},
                ),
                Compartment(
                    "cylinder",
                    "restricted_fraction",
                    {"diffusivity": "parallel_diffusivity", "diameter": "axon_diameter"},
                ),
                Compartment("dot", "dot_fraction"),
            ),
            derived={"perpendicular_diffusivity": _across},
            units={"perpendicular_diffusivity": "mm^2/s"},
            maps=(
                "axon_diameter",
                "restricted_fraction",
                "hindered_fraction",
                "dot_fraction",
                "parallel_diffusivity",
                "perpendicular_diffusivity",
            ),
            min_shells=2,
        )
        super().__init__(gtab, definition, **kwargs)


class IVIMModel(CompartmentModel):
    """Intravoxel incoherent motion [1]_: blood that flows in all directions, and diffusion.

    Maps: `perfusion_fraction`, `D_star` and `D` (mm^2/s), and `S0`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least three b > 0. Pulse timings are not needed.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Le Bihan et al., Radiology 168 (1988) 497,
       https://doi.org/10.1148/radiology.168.2.3393671

    Examples
    --------
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse.compartments import IVIMModel
    >>> b = [0, 10, 20, 40, 80, 150, 300, 500, 800]
    >>> gtab = gradient_table(b, bvecs=[[0, 0, 0]] + [[1, 0, 0]] * 8, b0_threshold=0)
    >>> model = IVIMModel(gtab)
    >>> truth = {"perfusion_fraction": 0.1, "D": 1.0, "D_star": 15.0}
    >>> fit = model.fit(model.signals(truth), sigma=1e-4)
    >>> bool(abs(fit.D - 1e-3) < 1e-5)
    True
    """

    def __init__(self, gtab: GradientTable | BaseAcquisition, **kwargs: Any):
        definition = Definition(
            "IVIM",
            (Parameter("D", 0.05, 4.0, "mm^2/s"), Parameter("D_star", 4.0, 100.0, "mm^2/s")),
            (
                Compartment("ball", "tissue_fraction", {"diffusivity": "D"}),
                Compartment("ball", "perfusion_fraction", {"diffusivity": "D_star"}),
            ),
            maps=("perfusion_fraction", "D_star", "D"),
            min_shells=3,
            n_starts=1,
        )
        super().__init__(gtab, definition, **kwargs)


def diffusivities(**values) -> tuple[dict[str, float], tuple[Parameter, ...]]:
    """Those that are known, um^2/ms, and parameters of those that are fitted."""
    known, fitted = {}, []
    for name, value in values.items():
        bounds: Any = _FREE if isinstance(value, str) and value == "free" else value
        if np.ndim(bounds) == 0:
            known[name] = diffusivity_um2_per_ms(name, bounds)
            continue
        if len(bounds) != 2:
            raise ValueError(
                f'{name} is {value!r}; give a number, bounds (low, high), or "free", in mm^2/s.'
            )
        low, high = (diffusivity_um2_per_ms(name, bound) for bound in bounds)
        fitted.append(Parameter(name, low, high, "mm^2/s"))
    return known, tuple(fitted)


def _restricted(values):
    return values["tissue"] * values["axon_share"]


def _across(values):
    return values["perpendicular_share"] * values["parallel_diffusivity"]
