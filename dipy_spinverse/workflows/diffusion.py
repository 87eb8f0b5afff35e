"""Base of commands that read diffusion-weighted volumes, gradients, timings and a mask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipy_spinverse.workflows.fit_command import FitCommand, Images, images_of

if TYPE_CHECKING:
    from dipy.core.gradients import GradientTable

    from dipy_spinverse.acquisition import BaseAcquisition
    from dipy_spinverse.voxels.fit import VoxelFit

_OF_BIDS = ("derivatives", "dataset_description")


def read_acquisition(
    *,
    bvalues_files: str,
    bvectors_files: str,
    protocol: str | None = None,
    big_delta: str | None = None,
    small_delta: str | None = None,
    te: str | None = None,
    mixing_time: str | None = None,
    isotropic: str | None = None,
    n_averages: str | None = None,
    b0_threshold: float = 50.0,
) -> BaseAcquisition | GradientTable:
    """Read gradients and timings; without those of pulses, a GradientTable or b-tensors.

    Parameters
    ----------
    bvalues_files : string or Path
        Path to the bvalues files (s/mm^2). This path may contain wildcards to use multiple
        bvalues files at once.
    bvectors_files : string or Path
        Path to the bvectors files. This path may contain wildcards to use multiple bvectors
        files at once.
    protocol : string, optional
        Timings of a public scan, "hcp-3t" or "hcp-mgh", unless the next options give others.
    big_delta : string, optional
        Time between the onsets of the two gradient pulses, in seconds: a number, or the path of
        a text file with one number per volume. Without it, that of the BIDS sidecar of the
        bvalues, if there is one.
    small_delta : string, optional
        Duration of a gradient pulse, in seconds: a number, or the path of a text file with one
        number per volume. Without it, that of the sidecar.
    te : string, optional
        Echo time in seconds: a number, or the path of a text file with one number per volume.
        Without it, that of the sidecar, or one for all that leaves room for all pulses. For a
        stimulated echo, the time during which the magnetisation is transverse.
    mixing_time : string, optional
        Mixing time of a stimulated echo in seconds, during which the magnetisation is stored: a
        number, or the path of a text file with one number per volume.
    isotropic : string, optional
        Which volumes are averages over directions (powder averages): 'all' (but b0), or the path
        of a text file with 1 for each that is and 0 for others. With 'all' the bvectors file is
        not read; any file will do, for instance that of the bvalues again.
    n_averages : string, optional
        Magnitudes of which each volume is the mean, 1 by default: a number, or the path of a text
        file with one number per volume. For averages over directions, the number of directions;
        their noise floor depends on it.
    b0_threshold : float, optional
        Volumes with a b-value up to this one (s/mm^2) count as b0 volumes.
    """
    from dipy.core.gradients import gradient_table

    from dipy_spinverse.acquisition.b_tensors import TensorAcquisition
    from dipy_spinverse.acquisition.files import read_table, sidecar_times
    from dipy_spinverse.acquisition.protocols import PROTOCOLS
    from dipy_spinverse.acquisition.pulsed import Acquisition

    given: dict[str, Any] = {
        "big_delta": big_delta, "small_delta": small_delta, "te": te, "mixing_time": mixing_time
    }  # fmt: skip
    sidecar = Path(bvalues_files).with_suffix(".json")
    times: dict[str, Any] = sidecar_times("bvalues_files", sidecar) if sidecar.is_file() else {}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}; give one of {', '.join(PROTOCOLS)}.")
        times |= PROTOCOLS[protocol]
    times |= {name: value for name, value in given.items() if value is not None}
    all_averages = isotropic == "all"
    bvectors = None if all_averages else bvectors_files
    untimed = not {"big_delta", "small_delta", "mixing_time"} & times.keys()
    if untimed and isotropic is None and n_averages is None:
        bvals, bvecs = read_table(bvalues_files, bvectors)
        return gradient_table(bvals, bvecs=bvecs, b0_threshold=b0_threshold)
    if untimed:  # b-tensors do not keep these
        times |= {"big_delta": 0.002, "small_delta": 0.001}
    check_pulses(times)
    acquired = Acquisition.from_files(
        bvalues_files, bvectors, **times,
        isotropic=True if all_averages else isotropic, n_averages=n_averages,
        b0_threshold=b0_threshold,
    )  # fmt: skip
    return TensorAcquisition.from_acquisition(acquired) if untimed else acquired


def check_pulses(times: dict[str, Any]) -> None:
    """Raise ValueError if the timing of the pulses is not known."""
    for name in ("big_delta", "small_delta"):
        if times.get(name) is None:
            raise ValueError(
                f"{name} is missing; give --{name} in seconds, as a number (--{name} 0.03) or as "
                "the path of a text file with one number per volume, or --protocol."
            )


@wraps(read_acquisition)
def read_pulses(**files: Any) -> BaseAcquisition | GradientTable:
    """As `read_acquisition`, for what needs the timing of the pulses."""
    acquired = read_acquisition(**files)
    if not hasattr(acquired, "timings"):
        check_pulses({})
    return acquired


class DiffusionCommand(FitCommand):
    """A command that fits a model to diffusion-weighted volumes."""

    steps = ("read_images", "read_acquisition", *FitCommand.steps, "derivative_paths")

    read_acquisition = staticmethod(read_pulses)

    def read(self, arguments: dict[str, Any]) -> Images:
        """Read the volume and its acquisition."""
        acquired = self.call("read_acquisition", arguments)
        return self.call("read_images", arguments, acquired)

    def derivative_paths(self, input_files: str, *, bids: str | None = None) -> dict[str, Path]:
        """Paths of maps in a BIDS data set.

        Parameters
        ----------
        bids : string, optional
            Folder of a BIDS derivative data set, into which maps are written, too, each with a
            sidecar of its unit and meaning. The images must have a name of BIDS, such as
            sub-01_dwi.nii.gz.
        """
        if bids is None:
            return {}
        from dipy_spinverse.report.bids import entities_of

        entities, folder = entities_of(input_files)
        inside, described = Path(bids) / folder, Path(bids) / "dataset_description.json"
        inside.mkdir(parents=True, exist_ok=True)
        paths = {"derivatives": inside / f"{entities}_model-{self.model_name}"}
        return paths if described.exists() else paths | {"dataset_description": described}

    def more_paths(self, arguments: dict[str, Any], paths: dict[str, Path]) -> dict[str, Path]:
        """The report and the BIDS derivatives, if requested."""
        derivatives = self.call("derivative_paths", arguments, arguments["input_files"])
        return super().more_paths(arguments, paths) | derivatives

    def written(self, paths: dict[str, Path]) -> Iterator[Path]:
        """Files of all outputs and derivatives."""
        plain = {name: path for name, path in paths.items() if name not in _OF_BIDS}
        yield from super().written(plain)
        if "derivatives" in paths:
            from dipy_spinverse.report.bids import derivative_files

            yield from derivative_files(self.derived, paths["derivatives"])

    @property
    def derived(self) -> list[str]:
        """Names of the arrays of a fit that become derivatives."""
        return [*dict.fromkeys((*self.maps, *self.others, "S0", "status"))]

    @property
    def model_name(self) -> str:
        """Name of the class of the model, without "Model"."""
        return type(self).__name__.removesuffix("Flow")

    def write(self, fit: VoxelFit, images: Images, settings: dict, paths: dict[str, Path]) -> None:
        """Write maps, the fit and the settings, and the derivatives if requested."""
        super().write(fit, images, settings, paths)
        if "derivatives" not in paths:
            return
        from dipy_spinverse.report.bids import save_derivatives, save_description

        source, stem = settings["inputs"]["input_files"], paths["derivatives"]
        save_derivatives(fit, self.derived, stem, source, images.affine, self.model_name)
        if "dataset_description" in paths:
            save_description(paths["dataset_description"])

    def read_images(
        self, acquired: Any, *, input_files: str, mask_file: str | None = None
    ) -> Images:
        """Read volumes and the mask.

        Parameters
        ----------
        input_files : string or Path
            Path to the input volumes. This path may contain wildcards to process multiple inputs
            at once.
        mask_file : string, optional
            Path to the mask of the voxels to fit. Without it, all voxels are fitted.
        """
        from dipy_spinverse.voxels.image_files import StoredImage

        data = StoredImage(input_files, "input_files")
        data.check_real()
        if data.ndim != 4:
            raise ValueError(
                f"input_files: {input_files} has shape {data.shape}; give a 4-D volume with the "
                "measurements along its last axis."
            )
        return images_of(data, data.affine, mask_file, acquired)
