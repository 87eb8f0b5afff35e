"""More models that the field uses: grey matter, tumours, relaxation, no constraints."""

from __future__ import annotations

from typing import Any

from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Expression,
    Parameter,
    complement,
    tortuosity,
)
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.named import Diffusivity, diffusivities
from dipy_spinverse.compartments.signals.exchange import TWO_SITES


class SANDIModel(CompartmentModel):
    """Soma and neurite density imaging [1]_: sticks in all directions, spheres, and water between.

    Maps: `neurite_fraction`, `soma_fraction`, `extra_fraction`, `soma_diameter` (um),
    `neurite_diffusivity`, `extra_diffusivity` (mm^2/s), `S0`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings and at least four b > 0, up to 6 ms/um^2 or more. Averages over
        directions (``isotropic=True``) or single directions.
    soma_diffusivity : float, (low, high) or "free", optional
        Inside of spheres, mm^2/s.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Palombo et al., NeuroImage 215 (2020) 116835,
       https://doi.org/10.1016/j.neuroimage.2020.116835

    Examples
    --------
    >>> fit = SANDIModel(gtab, isotropic=True).fit(averages)  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        soma_diffusivity: Diffusivity = 3e-3,
        **kwargs: Any,
    ):
        known, fitted = diffusivities(soma_diffusivity=soma_diffusivity)
        definition = Definition(
            "SANDI",
            (
                Parameter("neurite_diffusivity", 0.5, 3.0, "mm^2/s"),
                Parameter("extra_diffusivity", 0.3, 3.0, "mm^2/s"),
                Parameter("soma_diameter", 2.0, 24.0, "um"),
                *fitted,
            ),
            (
                Compartment("stick", "neurite_fraction", {"diffusivity": "neurite_diffusivity"},
                            dispersion="isotropic"),
                Compartment("sphere", "soma_fraction",
                            {"diffusivity": "soma_diffusivity", "diameter": "soma_diameter"}),
                Compartment("ball", "extra_fraction", {"diffusivity": "extra_diffusivity"}),
            ),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            min_shells=4,
            arguments={"soma_diffusivity": soma_diffusivity},
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class NEXIModel(CompartmentModel):
    """Neurites in all directions whose water exchanges with what is around them [1]_ [2]_.

    With finite pulses (SMEX); NEXI is their limit for short ones. Maps: `neurite_fraction`,
    `exchange_time` (ms), `neurite_diffusivity`, `extra_diffusivity` (mm^2/s), `S0`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings, several diffusion times and at least two b > 0 each.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Jelescu et al., NeuroImage 256 (2022) 119277,
       https://doi.org/10.1016/j.neuroimage.2022.119277
    .. [2] Olesen et al., NeuroImage 251 (2022) 118976,
       https://doi.org/10.1016/j.neuroimage.2022.118976

    Examples
    --------
    >>> fit = NEXIModel(gtab, te=0.09, isotropic=True).fit(averages)  # doctest: +SKIP
    >>> fit.exchange_time, fit.exchange_time_low, fit.exchange_time_high  # doctest: +SKIP
    """

    def __init__(self, gtab: GradientTable | BaseAcquisition, **kwargs: Any):
        arguments = {
            "inside": "neurite_diffusivity", "outside": "extra_diffusivity",
            "fraction": "neurite_fraction", "exchange_time": "exchange_time",
        }  # fmt: skip
        parameters = (
            Parameter("neurite_fraction", 0.05, 0.95),
            Parameter("exchange_time", 1.0, 150.0, "ms"),
            Parameter("neurite_diffusivity", 0.5, 3.5, "mm^2/s"),
            Parameter("extra_diffusivity", 0.1, 2.0, "mm^2/s"),
        )
        definition = Definition(
            "NEXI",
            parameters,
            (Compartment(TWO_SITES, "neuropil", arguments, dispersion="isotropic"),),
            maps=tuple(p.name for p in parameters),
            min_shells=2,
            curved=True,
        )
        super().__init__(gtab, definition, **kwargs)


class VERDICTModel(CompartmentModel):
    """Vascular, extracellular and restricted diffusion for cytometry in tumours [1]_.

    Vessels in all directions, impermeable cells, and hindered water. Maps: `vascular_fraction`,
    `intracellular_fraction`, `extracellular_fraction`, `cell_diameter` (um), `S0`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings and at least four b > 0.
    cell_diffusivity, extracellular_diffusivity, vascular_diffusivity : optional
        mm^2/s, each a number, bounds (low, high) or "free"; as published for the prostate.
    **kwargs
        As :class:`CompartmentModel`.

    References
    ----------
    .. [1] Panagiotaki et al., Invest. Radiol. 50 (2015) 218,
       https://doi.org/10.1097/RLI.0000000000000115

    Examples
    --------
    >>> fit = VERDICTModel(gtab).fit(data)  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        cell_diffusivity: Diffusivity = 2e-3,
        extracellular_diffusivity: Diffusivity = 2e-3,
        vascular_diffusivity: Diffusivity = 8e-3,
        **kwargs: Any,
    ):
        arguments = {
            "cell_diffusivity": cell_diffusivity,
            "extracellular_diffusivity": extracellular_diffusivity,
            "vascular_diffusivity": vascular_diffusivity,
        }
        known, fitted = diffusivities(**arguments)
        definition = Definition(
            "VERDICT",
            (Parameter("cell_diameter", 0.5, 30.0, "um"), *fitted),
            (
                Compartment("stick", "vascular_fraction", {"diffusivity": "vascular_diffusivity"},
                            dispersion="isotropic"),
                Compartment("sphere", "intracellular_fraction",
                            {"diffusivity": "cell_diffusivity", "diameter": "cell_diameter"}),
                Compartment("ball", "extracellular_fraction",
                            {"diffusivity": "extracellular_diffusivity"}),
            ),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            min_shells=3,
            arguments=arguments,
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class StandardModel(CompartmentModel):
    """The standard model of white matter without constraints [1]_.

    Sticks and zeppelins that are dispersed alike (Watson), and free water. Maps:
    `neurite_fraction`, `extra_fraction`, `free_water_fraction`, `neurite_diffusivity`,
    `extra_parallel`, `extra_perpendicular` (mm^2/s), `odi`, `S0`, and `axis`. Shells of linear
    b-tensors alone leave a valley of like solutions, which intervals show; planar or spherical
    ones narrow it.

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
        known, fitted = diffusivities(free_water_diffusivity=free_water_diffusivity)
        dispersed: dict[str, Any] = {"dispersion": "watson", "odi": "odi"}
        outside = {"parallel": "extra_parallel", "perpendicular": "extra_perpendicular"}
        definition = Definition(
            "standard model",
            (
                Parameter("odi", 0.01, 1.0, per_fibre=True),
                Parameter("neurite_diffusivity", 0.3, 3.2, "mm^2/s"),
                Parameter("extra_parallel", 0.3, 3.2, "mm^2/s"),
                Parameter("extra_perpendicular", 0.05, 1.8, "mm^2/s"),
                *fitted,
            ),
            (
                Compartment("stick", "neurite_fraction", {"diffusivity": "neurite_diffusivity"},
                            **dispersed),
                Compartment("zeppelin", "extra_fraction", outside, **dispersed),
                Compartment("ball", "free_water_fraction",
                            {"diffusivity": "free_water_diffusivity"}),
            ),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            min_shells=2,
            curved=True,
            arguments={"free_water_diffusivity": free_water_diffusivity},
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class MTENODDIModel(CompartmentModel):
    """NODDI at several echo times, with a T2 of each compartment [1]_.

    Fractions are those of water without relaxation. Maps: `ndi`, `odi`, `fwf`, `neurite_t2`,
    `extra_t2` (ms), `S0` (at no echo time), and `axis`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least two shells and at least two echo times, each with a b0.
    parallel_diffusivity, isotropic_diffusivity : optional
        As for :class:`NODDIModel`.
    free_water_t2 : float, optional
        ms; known.
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
        arguments = {
            "parallel_diffusivity": parallel_diffusivity,
            "isotropic_diffusivity": isotropic_diffusivity,
        }
        known, fitted = diffusivities(**arguments)
        along = "parallel_diffusivity"
        dispersed: dict[str, Any] = {"dispersion": "watson", "odi": "odi"}
        hindered: dict[str, Expression] = {
            "parallel": along,
            "perpendicular": tortuosity(along, "ndi"),
        }
        definition = Definition(
            "MTE-NODDI",
            (
                Parameter("ndi", 0.0, 1.0),
                Parameter("odi", 0.01, 1.0, per_fibre=True),
                Parameter("neurite_t2", 20.0, 200.0, "ms"),
                Parameter("extra_t2", 20.0, 200.0, "ms"),
                *fitted,
            ),
            (
                Compartment("stick", "tissue", {"diffusivity": along}, share="ndi",
                            T2="neurite_t2", **dispersed),
                Compartment("zeppelin", "tissue", hindered, share=complement("ndi"),
                            average="tensor", T2="extra_t2", **dispersed),
                Compartment("ball", "fwf", {"diffusivity": "isotropic_diffusivity"},
                            T2=float(free_water_t2)),
            ),
            fixed=known,
            units=dict.fromkeys(known, "mm^2/s"),
            maps=("ndi", "odi", "fwf", "neurite_t2", "extra_t2", *(p.name for p in fitted)),
            min_shells=2,
            curved=bool(fitted),
            arguments={**arguments, "free_water_t2": free_water_t2},
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)
