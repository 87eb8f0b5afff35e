"""``dipy_fit_tissue_fractions``: images in, maps of tissue fractions out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.acquisition.files import read_json
from dipy_spinverse.report.images import map_paths
from dipy_spinverse.workflows.command import check_names
from dipy_spinverse.workflows.fit_command import FitCommand, Images, images_of


class TissueFractionsFlow(FitCommand):
    """Find how much CSF, grey and white matter is in each voxel of ordinary MR images.

    A voxel is a mixture of tissues, whose signals follow from the sequences of the images and the
    relaxation times of the literature; no training data are needed. Writes maps of fractions with
    standard deviations and 95 % intervals. The images must be of one examination and registered;
    each may have a scale, bias field and noise level of its own. Their sequences are read from the
    BIDS sidecar of each image (NAME.json of NAME.nii.gz), or from one file of all of them.
    """

    steps = ("read_images", *FitCommand.steps)
    joint_inputs = True
    maps = ("csf", "gm", "wm", "background")
    others = ("b1",)
    _field: float | None = None

    def read_images(
        self,
        *,
        input_files: list[str],
        sequences_file: str | None = None,
        mask_file: str | None = None,
    ) -> Images:
        """Read images, their sequences and the mask.

        Parameters
        ----------
        input_files : variable string or Path
            Paths of the images, 3-D or with several contrasts along the fourth axis.
        sequences_file : string or Path, optional
            JSON or YAML file with a list of sequences, one for each contrast in the order of the
            images. Each has a "type" (SpoiledGradientEcho, MPRAGE or TurboSpinEcho) and the
            arguments of that class in seconds and degrees, or the fields of a BIDS sidecar; or
            the type PulseqFile, the "path" of a .seq file and "voxel_mm".
        mask_file : string or Path, optional
            Path of the mask of voxels to fit: the brain or the head. Without it, all.
        """
        from dipy_spinverse.tissue_fractions import stack_images
        from dipy_spinverse.voxels.image_files import StoredImage

        files = [*map(Path, input_files)]
        images = [StoredImage(path, "input_files") for path in files]
        try:
            data, affine = stack_images(images)
        except ValueError as error:
            names = ", ".join(f"{k}: {path}" for k, path in enumerate(files))
            raise ValueError(f"input_files: {error} Images are {names}.") from None
        sequences, self._field = _sequences(files, images, sequences_file)
        if len(sequences) != data.shape[-1]:
            raise ValueError(
                f"sequences_file: {sequences_file} has {len(sequences)} sequences, but the images "
                f"have {data.shape[-1]} contrasts; give one for each, in the order of the images."
            )
        return images_of(data, affine, mask_file, sequences)

    def more_paths(self, arguments: dict[str, Any], paths: dict[str, Path]) -> dict[str, Path]:
        """The report, and the maps of further tissues."""
        listed, folder = arguments["tissues_file"], paths["status"].parent
        tissues = [] if listed is None else _list("tissues_file", listed)
        names = [str(t.get("name")) for t in tissues if isinstance(t, dict)]
        files = {name: f"{name}.nii.gz" for name in names if name not in self.maps}
        check_names({f"tissues_file: {name}": file for name, file in files.items()})
        maps = [path for file in files.values() for path in map_paths(folder / file)]
        return super().more_paths(arguments, paths) | {f"map {path.name}": path for path in maps}

    def make_model(
        self,
        acquired: Any,
        *,
        field: float | None = None,
        tissues_file: str | None = None,
        unknown: list[str] | None = None,
        b1_error: float | None = None,
        constants_error: float | None = None,
        smoothness: float | None = None,
        series: list[int] | None = None,
    ) -> Any:
        """The model.

        Parameters
        ----------
        field : float, optional
            Field strength in tesla, for the relaxation times: 1.5, 3 or 7. Without it, that of the
            sidecars, or 3.
        tissues_file : string or Path, optional
            JSON or YAML file with a list of tissues in addition to CSF, grey and white matter
            (csf, gm, wm), or in their place where they have the same name. Each has a "name",
            "proton_density" (of water: 1), "t1_s", "t2_s", "t2_prime_s" (1/T2* = 1/T2 + 1/T2')
            and "diffusivity" (mm^2/s). At most five in all. Maps of others are NAME.nii.gz.
        unknown : variable string, optional
            Parameters estimated from the images: some of scale, bias, b1 and constants. Without
            it, all.
        b1_error : float, optional
            Standard deviation of the transmit field about b1_file, or about 1. Without it, 0.1
            where b1 is unknown.
        constants_error : float, optional
            Relative standard deviation of the relaxation times about the literature's. Without
            it, 0.2 where constants are unknown.
        smoothness : float, optional
            Strength of the prior that neighbouring voxels are similar; 0 for none. Without it,
            estimated for one to three images.
        series : variable int, optional
            A number for each image: images of the same number (echoes of one acquisition) share
            scale, bias field and noise level. Without it, each has its own.
        """
        from dipy_spinverse.tissue_fractions import TissueFractionModel
        from dipy_spinverse.tissue_fractions.shared_parameters import UNKNOWNS

        return TissueFractionModel(
            acquired, _tissues(field or self._field or 3.0, tissues_file),
            unknown=unknown or UNKNOWNS,
            b1_error=b1_error, constants_error=constants_error, smoothness=smoothness,
            series=series,
        )  # fmt: skip

    def fit_options(self, images: Images, *, b1_file: str | None = None) -> dict[str, Any]:
        """The transmit field.

        Parameters
        ----------
        b1_file : string or Path, optional
            Path of a map of the transmit field over the nominal one.
        """
        from dipy_spinverse.voxels.image_files import volume_of

        if b1_file is None:
            return {"b1": 1.0}
        return {"b1": volume_of(b1_file, (images.data.shape[:3], images.affine), "b1_file")}


def _sequences(files, images, sequences_file):
    """Sequences of the contrasts of all images, and the field strength of their sidecars (T)."""
    from dipy_spinverse.tissue_fractions.sequence_files import field_of_sidecar, sequence_from

    if sequences_file is not None:
        described = [(sequences_file, each) for each in _list("sequences_file", sequences_file)]
    else:
        sidecars = [_sidecar(path, image) for path, image in zip(files, images, strict=True)]
        described = [(path, _read(path)) for path in sidecars]
    sequences, strengths = [], set()
    for path, description in described:
        try:
            sequences.append(sequence_from(description))
            strengths.add(field_of_sidecar(description))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    known = sorted(strengths - {None})
    if len(known) > 1:
        raise ValueError(
            f"input_files: sidecars have field strengths {known} T; give one --field."
        )
    return sequences, known[0] if known else None


def _sidecar(path, image):
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.is_file():
        raise ValueError(
            f"input_files: {path} has no sidecar {sidecar.name} with its sequence; give "
            "--sequences_file."
        )
    if image.ndim != 3:
        raise ValueError(
            f"input_files: {path} has several contrasts, its sidecar one sequence; give "
            "--sequences_file."
        )
    return sidecar


def _tissues(field, path):
    """Tissues of the literature, and those of the file in addition or in their place."""
    from dipy_spinverse.tissue_fractions import Tissue, tissues_at

    tissues = {tissue.name: tissue for tissue in tissues_at(field)}
    for description in [] if path is None else _list("tissues_file", path):
        try:
            tissue = Tissue(**description)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"tissues_file: {path} has {shortened(description)}: {error}"
            ) from None
        tissues[tissue.name] = tissue
    return [*tissues.values()]


def _list(name, path):
    listed = _read(Path(path))
    if not isinstance(listed, list):
        raise ValueError(f"{name}: {path} does not contain a list; write one.")
    return listed


def _read(path: Path):
    if path.suffix.lower() not in (".yaml", ".yml"):
        return read_json("file", path)
    try:
        import yaml
    except ImportError:
        raise ValueError(f"{path} needs PyYAML; install it, or use JSON.") from None
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not valid YAML: {reason}") from None
