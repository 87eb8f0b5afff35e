"""Published models of grey matter (SANDI, NEXI), tumours (VERDICT) and perfusion (IVIM)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import BaseAcquisition, require_pulsed
from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Diffusivity,
    Parameter,
    split_diffusivities,
)
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.signals.exchange import TWO_SITES
from dipy_spinverse.compartments.signals.kernels import CHANGING_SPHERES
from dipy_spinverse.user_warnings import warn

# ms/um^2, above which no perfusing blood is left (pseudo-diffusivity of 10 um^2/ms and more: below
# e^-2); as DIPY's IvimModel splits b-values (Le Bihan et al. 1988).
_LARGEST_PERFUSION_B = 0.2
# Ratio of soma diameters when Delta doubles, and standard deviation of the logarithm of a diameter
# from one Delta where water exchanges in 5 to 50 ms (benchmarks/results/soma_exchange.md).
_GROWTH, _EXCHANGE_SD = "soma_diameter_growth", 0.25


class SANDIModel(CompartmentModel):
    """Soma and neurite density imaging [1]_: sticks, spheres and extracellular water.

    The sticks point in all directions. Where water crosses the membranes of somas, their apparent
    size depends on the diffusion time: with several, the image is tested for one size; with one,
    the interval of the size is wider by what exchange within 5 to 50 ms changes. Maps:
    `neurite_fraction`, `soma_fraction`, `extra_fraction`, `soma_diameter` (um),
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

    Warns
    -----
    UserWarning
        One diffusion time; in `fit`, data that reject one size for all diffusion times.

    References
    ----------
    .. [1] Palombo et al., NeuroImage 215 (2020) 116835,
       https://doi.org/10.1016/j.neuroimage.2020.116835

    Examples
    --------
    >>> fit = SANDIModel(gtab, isotropic=True, n_averages=32).fit(averages)  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        soma_diffusivity: Diffusivity = 3e-3,
        **kwargs: Any,
    ):
        fixed, fitted = split_diffusivities(soma_diffusivity=soma_diffusivity)
        units = dict.fromkeys(fixed, "mm^2/s")
        fixed[_GROWTH] = 1.0
        neurite, soma, extra = (
            {"diffusivity": f"{name}_diffusivity"} for name in ("neurite", "soma", "extra")
        )
        soma |= {"diameter": "soma_diameter", "growth": _GROWTH}
        definition = Definition(
            "SANDI",
            (
                Parameter("neurite_diffusivity", 0.5, 3.0, "mm^2/s"),
                Parameter("extra_diffusivity", 0.3, 3.0, "mm^2/s"),
                Parameter("soma_diameter", 2.0, 24.0, "um"),
                *fitted,
            ),
            (
                Compartment("stick", "neurite_fraction", neurite, dispersion="isotropic"),
                Compartment(CHANGING_SPHERES, "soma_fraction", soma),
                Compartment("ball", "extra_fraction", extra),
            ),
            fixed=fixed,
            units=units,
            min_shells=4,
            remedies={
                _GROWTH: "One size does not explain all diffusion times, as where water crosses "
                "the membranes: fit PackedCellsModel, whose membranes are permeable"
            },
            arguments={"soma_diffusivity": soma_diffusivity},
        )
        super().__init__(gtab, definition, **kwargs)
        times = require_pulsed(self.acquisition).big_delta[~self.acquisition.b0_mask].round(2)
        if np.ptp(times) == 0:
            self.definition = replace(definition, discrepancy={"soma_diameter": _EXCHANGE_SD})
            warn(
                f"SANDI with one diffusion time (big_delta of {times[0]:g} ms) cannot separate "
                "somas from exchange across their membranes: soma_diameter and soma_fraction are "
                "apparent ones. The interval of the diameter is wider, by "
                f"{100 * _EXCHANGE_SD:.0f} % (sd), that of the fraction is not. Several diffusion "
                "times show whether one size explains all."
            )


class NEXIModel(CompartmentModel):
    """Neurites in all directions whose water exchanges with the extracellular space [1]_ [2]_.

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
    >>> model = NEXIModel(gtab, te=0.09, isotropic=True, n_averages=32)  # doctest: +SKIP
    >>> fit = model.fit(averages)  # doctest: +SKIP
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
        fixed, fitted = split_diffusivities(**arguments)
        cell, extracellular, vascular = ({"diffusivity": name} for name in arguments)
        definition = Definition(
            "VERDICT",
            (Parameter("cell_diameter", 0.5, 30.0, "um"), *fitted),
            (
                Compartment("stick", "vascular_fraction", vascular, dispersion="isotropic"),
                Compartment("sphere", "intracellular_fraction",
                            {**cell, "diameter": "cell_diameter"}),
                Compartment("ball", "extracellular_fraction", extracellular),
            ),
            fixed=fixed,
            units=dict.fromkeys(fixed, "mm^2/s"),
            min_shells=3,
            arguments=arguments,
        )  # fmt: skip
        super().__init__(gtab, definition, **kwargs)


class IVIMModel(CompartmentModel):
    """Intravoxel incoherent motion [1]_: blood flow in all directions, and diffusion.

    Maps: `perfusion_fraction`, `D_star` and `D` (mm^2/s), and `S0`.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With at least three b > 0, one of them at most 200 s/mm^2, above which the perfusing blood
        has no signal. Pulse timings are not needed.
    **kwargs
        As :class:`CompartmentModel`.

    Raises
    ------
    ValueError
        No small b.

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
        b = self.acquisition.b
        if not ((b > 0) & (b <= _LARGEST_PERFUSION_B)).any():
            raise ValueError(
                f"gtab has no b between 0 and {1e3 * _LARGEST_PERFUSION_B:g} s/mm^2 (its smallest "
                f"b > 0 is {1e3 * b[b > 0].min():g}): perfusion is not identifiable. Add volumes "
                "with small b, or use another model."
            )
