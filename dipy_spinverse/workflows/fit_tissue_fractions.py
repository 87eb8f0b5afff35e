"""The workflow behind ``dipy_fit_tissue_fractions``: images in, maps of tissue fractions out."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import nibabel
import numpy as np
from dipy.io.image import load_nifti_data, save_nifti
from dipy.workflows.workflow import Workflow

from dipy_spinverse.report.files import save_map, save_settings

logger = logging.getLogger("dipy_spinverse")

FRACTIONS = ("csf", "gm", "wm", "background")
OTHERS = ("S0", "b1", "residual_rms")
UNITS = {**dict.fromkeys(FRACTIONS, "1"), "S0": "that of the images", "b1": "1"}


class TissueFractionsFlow(Workflow):
    """Fit fractions of CSF, grey and white matter to images of several contrasts."""

    @classmethod
    def get_short_name(cls) -> str:
        """Prefix of this workflow's options inside a combined workflow."""
        return "tissue_fractions"

    def run(
        self,
        input_files,
        sequences_file=None,
        field=3.0,
        tissues_file=None,
        mask_file=None,
        b1_file=None,
        sigma=None,
        unknown=None,
        b1_error=0.0,
        constants_error=0.0,
        smoothness=0.0,
        n_draws=256,
        engine="serial",
        n_jobs=-1,
        vox_per_chunk=None,
        verbose=False,
        out_dir="",
        out_csf="csf.nii.gz",
        out_gm="gm.nii.gz",
        out_wm="wm.nii.gz",
        out_background="background.nii.gz",
        out_S0="S0.nii.gz",
        out_b1="b1.nii.gz",
        out_predicted="predicted.nii.gz",
        out_residual_rms="residual_rms.nii.gz",
        out_status="status.nii.gz",
        out_fit="fit.npz",
        out_settings="settings.json",
    ):
        """Find how much CSF, grey and white matter is in each voxel of ordinary MR images.

        A voxel is a mixture of tissues, whose signals follow from the sequences of the images and
        the relaxation times of the literature; no training data are needed. Writes maps of
        fractions with standard deviations and 95 % intervals. The images must be of one
        examination, on one scale and registered. Their sequences are read from the BIDS sidecar
        beside each image (NAME.json of NAME.nii.gz), or from one file of all of them.

        Parameters
        ----------
        input_files : variable string or Path
            Paths of the images, 3-D or with several contrasts along the fourth axis.
        sequences_file : string or Path, optional
            JSON or YAML file with a list of sequences, one for each contrast in the order of the
            images. Each has a "type" (SpoiledGradientEcho, MPRAGE or TurboSpinEcho) and the
            arguments of that class in seconds and degrees, or the fields of a BIDS sidecar.
        field : float, optional
            Field strength in tesla, for the relaxation times: 1.5, 3 or 7.
        tissues_file : string or Path, optional
            JSON or YAML file with a list of tissues beside CSF, grey and white matter (csf, gm,
            wm), or in their place where they have the same name. Each has a "name",
            "proton_density" (of water: 1), "t1_s", "t2_s", "t2_prime_s" (1/T2* = 1/T2 + 1/T2')
            and "diffusivity" (um^2/ms). At most five in all. Maps of others are NAME.nii.gz.
        mask_file : string or Path, optional
            Path of the mask of voxels to fit: the brain or the head. Without it, all.
        b1_file : string or Path, optional
            Path of a map of the transmit field over the nominal one.
        sigma : float, optional
            Standard deviation of the noise in the units of the images. Without it, it is found
            from what fractions leave of the images.
        unknown : variable string, optional
            What is found from the images: some of scale, bias, b1 and constants. Without it,
            scale and bias.
        b1_error : float, optional
            Standard deviation of the transmit field about b1_file, or about 1. Needed where b1 is
            unknown.
        constants_error : float, optional
            Relative standard deviation of the relaxation times and proton densities about the
            literature's. Needed where constants are unknown.
        smoothness : float, optional
            How alike neighbouring voxels are thought to be, for one or few contrasts; 2 suits
            brains at 2 to 3 mm. One contrast needs a known transmit field, too.
        n_draws : int, optional
            Draws from the posterior of each voxel; 0 for likeliest values only, without intervals.
        engine : string, optional
            How to spread voxels over processes: 'serial', 'joblib', 'dask' or 'ray'.
        n_jobs : int, optional
            Number of processes for an engine other than 'serial'; -1 for all but one core.
        vox_per_chunk : int, optional
            Voxels handed to a process at once.
        verbose : bool, optional
            Show a progress bar.
        out_dir : string or Path, optional
            Output directory.
        out_csf : string, optional
            Name of the map of the fraction of CSF. Like each of the next three maps, it comes
            with its standard deviation (_std) and the ends of its 95 % interval (_low, _high).
        out_gm : string, optional
            Name of the map of the fraction of grey matter.
        out_wm : string, optional
            Name of the map of the fraction of white matter.
        out_background : string, optional
            Name of the map of the fraction without signal.
        out_S0 : string, optional
            Name of the map of the signal of water of unit magnetisation.
        out_b1 : string, optional
            Name of the map of the transmit field over the nominal one, given or found.
        out_predicted : string, optional
            Name of the volumes of predicted images.
        out_residual_rms : string, optional
            Name of the map of the root mean square of the residuals.
        out_status : string, optional
            Name of the map of status codes; the settings file says what they mean.
        out_fit : string, optional
            Name of the file that dipy_spinverse.load_fit reads.
        out_settings : string, optional
            Name of the JSON file with all settings, versions and the meaning of the codes.
        """
        settings = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "input_files") and not name.startswith("out_")
        }
        io_it = self.get_io_iterator()
        rows = list(io_it)
        paths = dict(zip(io_it.out_keys, map(Path, rows[0][1:]), strict=True))
        _fit_images([Path(row[0]) for row in rows], settings, paths)


def _fit_images(files: list[Path], settings: dict, paths: dict[str, Path]) -> None:
    """Fit the images of one examination and write all outputs."""
    # Imported here: torch takes seconds, which `-h` must not.
    from dipy_spinverse.tissue_fractions import TissueFractionModel, stacked

    images = [nibabel.load(path) for path in files]
    try:
        data, affine = stacked(images)
    except ValueError as error:
        names = ", ".join(f"{k}: {path}" for k, path in enumerate(files))
        raise ValueError(f"input_files: {error} Images are {names}.") from None
    sequences = _sequences(files, images, settings["sequences_file"])
    if len(sequences) != data.shape[-1]:
        raise ValueError(
            f"sequences_file: {settings['sequences_file']} has {len(sequences)} sequences, the "
            f"images have {data.shape[-1]} contrasts; give one for each, in the order of the "
            "images."
        )
    mask, b1 = (_volume(settings, name, data.shape[:3]) for name in ("mask_file", "b1_file"))
    model = TissueFractionModel(
        sequences,
        _tissues(settings),
        unknown=settings["unknown"] or ("scale", "bias"),
        b1_error=settings["b1_error"],
        constants_error=settings["constants_error"],
        smoothness=settings["smoothness"],
    )
    fit_options = ("sigma", "n_draws", "engine", "n_jobs", "vox_per_chunk", "verbose")
    start = time.perf_counter()
    fit = model.fit(
        data,
        None if mask is None else mask.astype(bool),
        b1=1.0 if b1 is None else b1,
        **{name: settings[name] for name in fit_options},
    )
    seconds = time.perf_counter() - start

    beside = paths["out_background"].parent
    for name in fit.MAPS:
        path = paths.get(f"out_{name}", beside / f"{name}.nii.gz")
        save_map(fit, name, path, affine, interval=settings["n_draws"] > 0)
    for name in OTHERS:
        save_map(fit, name, paths[f"out_{name}"], affine, interval=False)
    save_nifti(paths["out_status"], fit.status.astype(np.int16), affine)
    save_nifti(paths["out_predicted"], fit.predict().astype(np.float32), affine)
    fit.save(paths["out_fit"])
    inputs = {f"input_files {k}": path for k, path in enumerate(files)}
    save_settings(paths["out_settings"], inputs, settings, fit, seconds, units=UNITS)
    logger.info("Fractions found in %.1f s, in %s", seconds, paths["out_fit"].parent.resolve())


def _sequences(files, images, sequences_file):
    """Sequences of the contrasts of all images."""
    from dipy_spinverse.tissue_fractions import sequence_from

    if sequences_file is not None:
        listed = _list("sequences_file", sequences_file)
        return [_named(sequence_from, each, sequences_file) for each in listed]
    found = []
    for path, image in zip(files, images, strict=True):
        sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
        if not sidecar.is_file():
            raise ValueError(
                f"input_files: {path} has no sidecar {sidecar.name} that says its sequence; give "
                "--sequences_file."
            )
        if image.ndim != 3:
            raise ValueError(
                f"input_files: {path} has several contrasts, of which its sidecar says one; give "
                "--sequences_file."
            )
        found.append(_named(sequence_from, _read(sidecar), sidecar))
    return found


def _tissues(settings):
    """Those of the literature, and those of the file beside them or in their place."""
    from dipy_spinverse.tissue_fractions import Tissue, tissues_at

    path = settings["tissues_file"]
    tissues = {tissue.name: tissue for tissue in tissues_at(settings["field"])}
    for each in [] if path is None else _list("tissues_file", path):
        try:
            tissue = Tissue(**each)
        except (TypeError, ValueError) as error:
            raise ValueError(f"tissues_file: {path} has {each}: {error}") from None
        tissues[tissue.name] = tissue
    return [*tissues.values()]


def _list(name, path):
    """What a file lists."""
    listed = _read(Path(path))
    if not isinstance(listed, list):
        raise ValueError(f"{name}: {path} has no list; write one.")
    return listed


def _named(sequence_from, description, path):
    try:
        return sequence_from(description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path):
    if path.suffix.lower() not in (".yaml", ".yml"):
        return json.loads(path.read_text())
    try:
        import yaml
    except ImportError:
        raise ValueError(f"{path} needs PyYAML; install it, or use JSON.") from None
    return yaml.safe_load(path.read_text())


def _volume(settings: dict, name: str, shape: tuple[int, ...]):
    """Data of an optional image, checked against the shape of the others."""
    if settings[name] is None:
        return None
    data = load_nifti_data(settings[name])
    if data.shape != shape:
        raise ValueError(
            f"{name}: {settings[name]} has shape {data.shape}, the images {shape}; resample it to "
            "the images."
        )
    return data
