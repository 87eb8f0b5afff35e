"""Commands that fit compartment models: NODDI, ActiveAx, ZCD and IVIM."""

from __future__ import annotations

from typing import Any, ClassVar

from dipy_spinverse.workflows.diffusion import DiffusionCommand


class CompartmentCommand(DiffusionCommand):
    """A command that fits a compartment model."""

    others: ClassVar[tuple[str, ...]] = ("axis",)


class NODDIFlow(CompartmentCommand):
    """Fit NODDI: neurite density, orientation dispersion and free water.

    Needs at least two shells. Writes maps with standard deviations and 95 % intervals.
    """

    maps = ("ndi", "odi", "fwf")
    timed = False

    def make_model(
        self,
        acquired: Any,
        *,
        parallel_diffusivity: float = 1.7e-3,
        isotropic_diffusivity: float = 3e-3,
        dispersion: str = "watson",
        likelihood: str = "rician",
        seed: int = 0,
    ) -> Any:
        """The model.

        Parameters
        ----------
        parallel_diffusivity : float, optional
            Diffusivity along neurites, mm^2/s; known, not fitted.
        isotropic_diffusivity : float, optional
            Diffusivity of free water, mm^2/s; known, not fitted.
        dispersion : string, optional
            'watson', or 'bingham' for fibres that fan out in a plane (with a map of fanning).
        likelihood : string, optional
            'rician' for magnitudes, or 'gaussian' (least squares).
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import NODDIModel

        return NODDIModel(
            acquired, parallel_diffusivity=parallel_diffusivity,
            isotropic_diffusivity=isotropic_diffusivity, dispersion=dispersion,
            likelihood=likelihood, seed=seed,
        )  # fmt: skip


class ActiveAxFlow(CompartmentCommand):
    """Fit the minimal model of white matter (ActiveAx): axon diameter and fractions.

    Needs the pulse timings (--big_delta, --small_delta) and at least two shells. Writes maps with
    standard deviations and 95 % intervals.
    """

    maps = ("axon_diameter", "restricted_fraction", "free_water_fraction", "dot_fraction")

    def make_model(
        self,
        acquired: Any,
        *,
        parallel_diffusivity: float = 1.7e-3,
        isotropic_diffusivity: float = 3e-3,
        no_dot: bool = False,
        likelihood: str = "rician",
        seed: int = 0,
    ) -> Any:
        """The model.

        Parameters
        ----------
        parallel_diffusivity : float, optional
            Diffusivity along axons, mm^2/s; known, not fitted. About 0.6e-3 in fixed tissue.
        isotropic_diffusivity : float, optional
            Diffusivity of free water, mm^2/s; known, not fitted. About 2e-3 in fixed tissue.
        no_dot : bool, optional
            Leave out still water, as in living tissue.
        likelihood : string, optional
            'rician' for magnitudes, or 'gaussian' (least squares).
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import ActiveAxModel

        return ActiveAxModel(
            acquired, parallel_diffusivity=parallel_diffusivity,
            isotropic_diffusivity=isotropic_diffusivity, dot=not no_dot, likelihood=likelihood,
            seed=seed,
        )  # fmt: skip


class ZCDFlow(CompartmentCommand):
    """Fit zeppelin, cylinder and dot: axon diameter, fractions and diffusivities.

    Needs the pulse timings (--big_delta, --small_delta) and at least two shells. Writes maps with
    standard deviations and 95 % intervals.
    """

    maps = (
        "axon_diameter",
        "restricted_fraction",
        "hindered_fraction",
        "dot_fraction",
        "parallel_diffusivity",
        "perpendicular_diffusivity",
    )

    def make_model(self, acquired: Any, *, likelihood: str = "rician", seed: int = 0) -> Any:
        """The model.

        Parameters
        ----------
        likelihood : string, optional
            'rician' for magnitudes, or 'gaussian' (least squares).
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import ZCDModel

        return ZCDModel(acquired, likelihood=likelihood, seed=seed)


class IVIMFlow(CompartmentCommand):
    """Fit IVIM by variable projection: perfusion fraction, diffusivity and pseudo-diffusivity.

    Needs at least three b > 0; b below --b0_threshold count as 0. Writes maps with standard
    deviations and 95 % intervals.
    """

    maps = ("perfusion_fraction", "D_star", "D")
    others = ()
    timed = False

    def make_model(self, acquired: Any, *, likelihood: str = "rician", seed: int = 0) -> Any:
        """The model.

        Parameters
        ----------
        likelihood : string, optional
            'rician' for magnitudes, or 'gaussian' (least squares).
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import IVIMModel

        return IVIMModel(acquired, likelihood=likelihood, seed=seed)
