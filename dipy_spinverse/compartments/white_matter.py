"""Published models of white matter: NODDI, MTE-NODDI, ActiveAx, ZCD and the standard model."""

from __future__ import annotations

from typing import Any

from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import (
    ORIENTATION_PRIOR,
    Compartment,
    Definition,
    Diffusivity,
    Expression,
    Parameter,
    check_choice,
    complement,
    split_diffusivities,
    tortuosity,
)
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.signals.kernels import GAMMA_CYLINDERS, CustomKernel

_ODI = Parameter("odi", 0.01, 1.0, per_fibre=True, prior_power=ORIENTATION_PRIOR)
# From far below the resolution limit of any scanner to above the largest axons of the brain.
_AXON_DIAMETER = Parameter("axon_diameter", 0.2, 20.0, "um")


class NODDIModel(CompartmentModel):
    """Neurite orientation dispersion and density imaging [1]_, with Bingham dispersion [2]_.

    Sticks that are dispersed about one axis, hindered water around them with tortuosity, and free
    water. Maps: `ndi` (share of sticks in tissue), `odi`, `fwf` (free water), `S0`, and `axis`;
    with ``dispersion="bingham"`` also `fanning`, and diffusivities that are fitted.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least two shells. Pulse timings are not needed.
    parallel_diffusivity : float, (low, high) or "free", optional
        Diffusivity of tissue along its axis, mm^2/s: fixed, or fitted within bounds ("free":
        0.1e-3 to 3.2e-3) and then a map. In fixed tissue about 0.6e-3.
    isotropic_diffusivity : float, (low, high) or "free", optional
        Diffusivity of free water, mm^2/s: fixed, or fitted within bounds. In fixed tissue about
        2e-3.
    dispersion : {"watson", "bingham"}, optional
        Distribution of neurite orientations; "bingham" for neurites that fan out in a plane.
    extra_cellular : {"averaged", "dispersed"}, optional
        Water outside of neurites: "averaged", as published, has one diffusion tensor, the average
        over all directions of the neurites; "dispersed" has that of the adjacent neurites, and its
        signals are averaged.
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
        check_choice("dispersion", dispersion, ("watson", "bingham"))
        check_choice("extra_cellular", extra_cellular, ("averaged", "dispersed"))
        diffusivities = {
            "parallel_diffusivity": parallel_diffusivity,
            "isotropic_diffusivity": isotropic_diffusivity,
        }
        fixed, fitted = split_diffusivities(**diffusivities)
        average = "tensor" if extra_cellular == "averaged" else "signals"
        dispersed, fanning = {"dispersion": dispersion, "odi": "odi"}, list[Parameter]()
        if dispersion == "bingham":
            dispersed |= {"fanning": "fanning"}
            fanning = [Parameter("fanning", 0.0, 1.0, per_fibre=True)]
        definition = Definition(
            "NODDI",
            (Parameter("ndi", 0.0, 1.0), _ODI, *fanning, *fitted),
            _noddi_compartments(dispersed, average=average),
            fixed=fixed,
            units=dict.fromkeys(fixed, "mm^2/s"),
            maps=("ndi", "odi", "fwf", *(p.name for p in (*fanning, *fitted))),
            min_shells=2,
            n_starts=4 if fitted else 1,
            curved=bool(fitted),
            arguments={
                **diffusivities, "dispersion": dispersion, "extra_cellular": extra_cellular,
            },
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class MTENODDIModel(CompartmentModel):
    """NODDI at several echo times, with a T2 of each compartment [1]_.

    Fractions are those of water without relaxation. Maps: `ndi`, `odi`, `fwf`, `neurite_t2`,
    `extra_t2` (ms), `S0` (at zero echo time), and `axis`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least two shells and at least two echo times, each with a b0.
    parallel_diffusivity, isotropic_diffusivity : optional
        As for :class:`NODDIModel`.
    free_water_t2 : float, optional
        ms; fixed.
    **kwargs
        As :class:`CompartmentModel`, `te` among them.

    References
    ----------
    .. [1] Gong, Tong, He, Sun, Zhong and Zhang, NeuroImage 217 (2020) 116906,
       https://doi.org/10.1016/j.neuroimage.2020.116906

    Examples
    --------
    >>> fit = MTENODDIModel(gtab, te=te).fit(data)  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        parallel_diffusivity: Diffusivity = 1.7e-3,
        isotropic_diffusivity: Diffusivity = 3e-3,
        free_water_t2: float = 1000.0,
        **kwargs: Any,
    ):
        diffusivities = {
            "parallel_diffusivity": parallel_diffusivity,
            "isotropic_diffusivity": isotropic_diffusivity,
        }
        fixed, fitted = split_diffusivities(**diffusivities)
        t2 = tuple(Parameter(name, 20.0, 200.0, "ms") for name in ("neurite_t2", "extra_t2"))
        definition = Definition(
            "MTE-NODDI",
            (Parameter("ndi", 0.0, 1.0), _ODI, *t2, *fitted),
            _noddi_compartments(
                {"dispersion": "watson", "odi": "odi"},
                T2=("neurite_t2", "extra_t2", float(free_water_t2)),
            ),
            fixed=fixed,
            units=dict.fromkeys(fixed, "mm^2/s"),
            maps=("ndi", "odi", "fwf", "neurite_t2", "extra_t2", *(p.name for p in fitted)),
            min_shells=2,
            curved=bool(fitted),
            arguments={**diffusivities, "free_water_t2": free_water_t2},
        )
        super().__init__(gtab, definition, **kwargs)


def _noddi_compartments(dispersed, average="tensor", T2=(None, None, None)):
    """Sticks, hindered water with tortuosity, and free water."""
    parallel = "parallel_diffusivity"
    hindered = {"parallel": parallel, "perpendicular": tortuosity(parallel, "ndi")}
    return (
        Compartment("stick", "tissue", {"diffusivity": parallel}, share="ndi", T2=T2[0],
                    **dispersed),
        Compartment("zeppelin", "tissue", hindered, share=complement("ndi"), average=average,
                    T2=T2[1], **dispersed),
        Compartment("ball", "fwf", {"diffusivity": "isotropic_diffusivity"}, T2=T2[2]),
    )  # fmt: skip


class ActiveAxModel(CompartmentModel):
    """Minimal model of white-matter diffusion [1]_.

    Cylinders of one diameter with finite pulses, a zeppelin with tortuosity around them, free
    water, and immobile water. Maps: `axon_diameter` (um), `restricted_fraction` (cylinders),
    `free_water_fraction`, `dot_fraction`, `S0`, and `axis`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings and at least two shells.
    parallel_diffusivity : float, (low, high) or "free", optional
        Diffusivity of tissue along its axis, mm^2/s: fixed, or fitted within bounds ("free":
        0.1e-3 to 3.2e-3) and then a map. In fixed tissue about 0.6e-3.
    isotropic_diffusivity : float, (low, high) or "free", optional
        Diffusivity of free water, mm^2/s: fixed, or fitted within bounds. In fixed tissue about
        2e-3.
    dot : bool, optional
        Include a compartment of immobile water, as in fixed tissue.
    diameters : {"one", "gamma"}, optional
        "gamma": cylinders have a gamma distribution of diameters, of which `axon_diameter` is the
        mean and the map `diameter_spread` the standard deviation over the mean. The diameter of
        "one" is weighted by volume, and its intervals do not cover the mean.
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
        check_choice("diameters", diameters, ("one", "gamma"))
        diffusivities = {
            "parallel_diffusivity": parallel_diffusivity,
            "isotropic_diffusivity": isotropic_diffusivity,
        }
        fixed, fitted = split_diffusivities(**diffusivities)
        parallel = "parallel_diffusivity"
        kernel: str | CustomKernel = "cylinder"
        arguments = {"diffusivity": parallel, "diameter": "axon_diameter"}
        spread: list[Parameter] = []
        if diameters == "gamma":
            kernel, arguments = GAMMA_CYLINDERS, {**arguments, "spread": "diameter_spread"}
            spread = [Parameter("diameter_spread", 0.05, 0.8)]
        hindered: dict[str, Expression] = {
            "parallel": parallel, "perpendicular": tortuosity(parallel, "axon_share"),
        }  # fmt: skip
        immobile = (Compartment("dot", "dot_fraction"),) if dot else ()
        definition = Definition(
            "ActiveAx",
            (_AXON_DIAMETER, Parameter("axon_share", 0.0, 1.0), *spread, *fitted),
            (
                Compartment(kernel, "tissue", arguments, share="axon_share"),
                Compartment("zeppelin", "tissue", hindered, share=complement("axon_share")),
                Compartment("ball", "free_water_fraction",
                            {"diffusivity": "isotropic_diffusivity"}),
                *immobile,
            ),
            fixed=fixed,
            units=dict.fromkeys(fixed, "mm^2/s"),
            derived={"restricted_fraction": _restricted_fraction},
            maps=(
                "axon_diameter", "restricted_fraction", "free_water_fraction",
                *(c.pool for c in immobile), *(p.name for p in (*spread, *fitted)),
            ),
            min_shells=2,
            curved=bool(spread or fitted),
            arguments={**diffusivities, "dot": dot, "diameters": diameters},
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class ZCDModel(CompartmentModel):
    """Zeppelin, cylinder and dot [1]_.

    Cylinders and zeppelin share their parallel diffusivity; the perpendicular one of the zeppelin
    is fitted, too. Maps: `axon_diameter` (um), `restricted_fraction` (cylinders),
    `hindered_fraction` (zeppelin), `dot_fraction`, `parallel_diffusivity` and
    `perpendicular_diffusivity` (mm^2/s), `S0`, and `axis`.

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
        zeppelin: dict[str, Expression] = {
            "parallel": "parallel_diffusivity", "perpendicular": _perpendicular,
        }  # fmt: skip
        cylinder = {"diffusivity": "parallel_diffusivity", "diameter": "axon_diameter"}
        definition = Definition(
            "ZCD",
            (
                _AXON_DIAMETER,
                Parameter("parallel_diffusivity", 0.1, 3.0, "mm^2/s"),
                Parameter("perpendicular_share", 0.0, 1.0),
            ),
            (
                Compartment("zeppelin", "hindered_fraction", zeppelin),
                Compartment("cylinder", "restricted_fraction", cylinder),
                Compartment("dot", "dot_fraction"),
            ),
            derived={"perpendicular_diffusivity": _perpendicular},
            units={"perpendicular_diffusivity": "mm^2/s"},
            maps=(
                "axon_diameter", "restricted_fraction", "hindered_fraction", "dot_fraction",
                "parallel_diffusivity", "perpendicular_diffusivity",
            ),
            min_shells=2,
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class StandardModel(CompartmentModel):
    """The standard model of white matter without constraints [1]_.

    Sticks and zeppelins with the same dispersion (Watson), and free water. Maps:
    `neurite_fraction`, `extra_fraction`, `free_water_fraction`, `neurite_diffusivity`,
    `extra_parallel`, `extra_perpendicular` (mm^2/s), `odi`, `S0`, and `axis`. With shells of
    linear b-tensors alone a valley of solutions explains the signals alike, as the intervals show;
    planar or spherical ones narrow it.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least two b > 0; b-tensors of any axial shape.
    free_water_diffusivity : float, (low, high) or "free", optional
        mm^2/s.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Novikov et al., NMR Biomed. 32 (2019) e3998, https://doi.org/10.1002/nbm.3998

    Examples
    --------
    >>> fit = StandardModel(gtab).fit(data)  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        free_water_diffusivity: Diffusivity = 3e-3,
        **kwargs: Any,
    ):
        arguments = {"free_water_diffusivity": free_water_diffusivity}
        fixed, fitted = split_diffusivities(**arguments)
        dispersed: dict[str, Any] = {"dispersion": "watson", "odi": "odi"}
        stick = {"diffusivity": "neurite_diffusivity"}
        zeppelin = {"parallel": "extra_parallel", "perpendicular": "extra_perpendicular"}
        definition = Definition(
            "standard model",
            (
                _ODI,
                Parameter("neurite_diffusivity", 0.3, 3.2, "mm^2/s"),
                Parameter("extra_parallel", 0.3, 3.2, "mm^2/s"),
                Parameter("extra_perpendicular", 0.05, 1.8, "mm^2/s"),
                *fitted,
            ),
            (
                Compartment("stick", "neurite_fraction", stick, **dispersed),
                Compartment("zeppelin", "extra_fraction", zeppelin, **dispersed),
                Compartment("ball", "free_water_fraction",
                            {"diffusivity": "free_water_diffusivity"}),
            ),
            fixed=fixed,
            units=dict.fromkeys(fixed, "mm^2/s"),
            min_shells=2,
            curved=True,
            arguments=arguments,
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


def _restricted_fraction(values):
    return values["tissue"] * values["axon_share"]


def _perpendicular(values):
    return values["perpendicular_share"] * values["parallel_diffusivity"]
