"""The workflow behind ``dipy_fit_spinverse``: NIfTI in, maps of tissue and meshes of walls out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from dipy.io.image import load_nifti, load_nifti_data, save_nifti
from dipy.workflows.workflow import Workflow

from dipy_spinverse.report.files import (
    MAP_UNITS,
    OTHER_UNITS,
    save_maps,
    save_meshes,
    save_settings,
)

if TYPE_CHECKING:
    from dipy_spinverse.acquisition import Acquisition

logger = logging.getLogger("dipy_spinverse")


class SpinverseFlow(Workflow):
    """Fit tissue, and its microscopic walls, to the diffusion-weighted signals of a volume."""

    @classmethod
    def get_short_name(cls) -> str:
        """Prefix of this workflow's options inside a combined workflow."""
        return "spinverse"

    def run(
        self,
        input_files,
        bvalues_files,
        bvectors_files,
        big_delta=None,
        small_delta=None,
        te=None,
        mixing_time=None,
        isotropic=None,
        mask_file=None,
        b0_threshold=50.0,
        diffusivity=None,
        free_diffusivity=3e-3,
        cells=4,
        cell_size=5.0,
        sigma=None,
        walls=False,
        free_water=False,
        n_fields=4,
        n_draws=200,
        optimizer="gauss-newton",
        seed=0,
        device="cpu",
        engine="serial",
        n_jobs=-1,
        vox_per_chunk=None,
        verbose=False,
        mesh_voxels=None,
        out_dir="",
        out_surface_to_volume="surface_to_volume.nii.gz",
        out_wall_permeability="wall_permeability.nii.gz",
        out_exchange_time="exchange_time.nii.gz",
        out_restricted_fraction="restricted_fraction.nii.gz",
        out_pore_diameter="pore_diameter.nii.gz",
        out_wall_anisotropy="wall_anisotropy.nii.gz",
        out_free_water_fraction="free_water_fraction.nii.gz",
        out_wall_orientation="wall_orientation.nii.gz",
        out_wall_orientation_angle="wall_orientation_angle.nii.gz",
        out_packed_cells="packed_cells.nii.gz",
        out_pattern_agreement="pattern_agreement.nii.gz",
        out_S0="S0.nii.gz",
        out_predicted="predicted.nii.gz",
        out_residual_rms="residual_rms.nii.gz",
        out_status="status.nii.gz",
        out_interface="interface",
        out_fit="fit.npz",
        out_settings="settings.json",
    ):
        """Find the tissue and the walls (membranes) that explain diffusion-weighted signals.

        Fits packed permeable cylinders and spheres to each voxel, and writes maps with standard
        deviations and 95 % intervals, and predicted signals. With --walls, or in the voxels of
        --mesh_voxels, solves the inverse problem of the Bloch-Torrey equation too: the
        permeability of every face of a periodic tetrahedral grid. The pulse timings are needed:
        give --big_delta and --small_delta.

        Parameters
        ----------
        input_files : string or Path
            Path to the input volumes. This path may contain wildcards to process multiple
            inputs at once.
        bvalues_files : string or Path
            Path to the bvalues files (s/mm^2). This path may contain wildcards to use multiple
            bvalues files at once.
        bvectors_files : string or Path
            Path to the bvectors files. This path may contain wildcards to use multiple
            bvectors files at once.
        big_delta : string, optional
            Time between the onsets of the two gradient pulses, in seconds: a number, or the
            path of a text file with one number per volume. Required.
        small_delta : string, optional
            Duration of a gradient pulse, in seconds: a number, or the path of a text file with
            one number per volume. Required.
        te : string, optional
            Echo time in seconds: a number, or the path of a text file with one number per
            volume. Without it, one for all that leaves room for all pulses. Of a stimulated
            echo, the time during which the magnetisation is transverse.
        mixing_time : string, optional
            Mixing time of a stimulated echo in seconds, during which the magnetisation is stored:
            a number, or the path of a text file with one number per volume.
        isotropic : string, optional
            Which volumes are averages over directions (powder averages): 'all' (but b0), or the
            path of a text file with 1 for each that is and 0 for others. With 'all' the bvectors
            file is not read; any file will do, for instance that of the bvalues again.
        mask_file : string, optional
            Path to the mask of the voxels to fit. Without it, all voxels are fitted.
        b0_threshold : float, optional
            Volumes with a b-value up to this one (s/mm^2) count as b0 volumes.
        diffusivity : float, optional
            Diffusivity of the water in tissue, mm^2/s, if it is known. Without it, packed cells
            find it, and between walls it is 2e-3.
        free_diffusivity : float, optional
            Diffusivity of free water, mm^2/s.
        cells : int, optional
            Lattice cubes of the grid along each axis (12 tetrahedra in each).
        cell_size : float, optional
            Edge of a lattice cube, um. Walls closer to each other than this are not resolved.
        sigma : float, optional
            Standard deviation of the noise in the units of the data. Without it, it is
            estimated from repeated b0 volumes, or else from the residual.
        walls : bool, optional
            Seek walls in all voxels, which takes some seconds for each. Without it, in those of
            --mesh_voxels alone.
        free_water : bool, optional
            Also fit a fraction of free water beside the grid of the walls.
        n_fields : int, optional
            Further wall fields per voxel with walls, from starts and noise of their own; 0 for a
            quick look without them.
        n_draws : int, optional
            Draws from the posterior of packed cells; 0 for the likeliest values without
            intervals, and with --walls for a quick look without packed cells.
        optimizer : string, optional
            'gauss-newton' or 'adam' (the published method; slow).
        seed : int, optional
            Seed of the random start.
        device : string, optional
            Torch device that computes, for instance 'cpu' or 'cuda'.
        engine : string, optional
            How to spread voxels over processes: 'serial', 'joblib', 'dask' or 'ray'.
        n_jobs : int, optional
            Number of processes for an engine other than 'serial'; -1 for all but one core.
        vox_per_chunk : int, optional
            Voxels handed to a process at once.
        verbose : bool, optional
            Show a progress bar.
        mesh_voxels : variable string, optional
            Voxels whose walls are saved as meshes, each as three indices with commas between
            them and no spaces, for instance 0,0,0 2,1,0.
        out_dir : string or Path, optional
            Output directory.
        out_surface_to_volume : string, optional
            Name of the map of wall area per volume (1/um). Like each of the next six maps, it
            comes with its standard deviation (_std) and the ends of its 95 % interval (_low,
            _high).
        out_wall_permeability : string, optional
            Name of the map of mean wall permeability (um/ms).
        out_exchange_time : string, optional
            Name of the map of exchange time (ms).
        out_restricted_fraction : string, optional
            Name of the map of the fraction of water enclosed by walls.
        out_pore_diameter : string, optional
            Name of the map of mean pore diameter (um).
        out_wall_anisotropy : string, optional
            Name of the map of wall anisotropy.
        out_free_water_fraction : string, optional
            Name of the map of the free-water fraction.
        out_wall_orientation : string, optional
            Name of the map of wall orientation (unit vectors in the frame of the bvectors).
        out_wall_orientation_angle : string, optional
            Name of the map of the angle (degrees) to that axis that 95 % of the posterior keep
            within.
        out_packed_cells : string, optional
            Name of the mask of voxels whose maps are those of packed cylinders and spheres;
            those of voxels with walls which these do not explain are read off the wall fields.
        out_pattern_agreement : string, optional
            Name of the map of the agreement (mean F1) of the wall fields' walls, where walls were
            sought. Below 0.8 a mesh shows one of many patterns.
        out_S0 : string, optional
            Name of the map of the signal without diffusion weighting.
        out_predicted : string, optional
            Name of the volumes of predicted signals.
        out_residual_rms : string, optional
            Name of the map of the root mean square of the residuals.
        out_status : string, optional
            Name of the map of status codes; the settings file says what they mean.
        out_interface : string, optional
            Stem of the mesh files; voxel i,j,k gives STEM_i_j_k.ply, .vtu (um) and .surf.gii
            (mm), or STEM_i_j_k_one_of_many.ply and so on where the pattern of its walls is not
            determined.
        out_fit : string, optional
            Name of the file that dipy_spinverse.load_fit reads.
        out_settings : string, optional
            Name of the JSON file with all settings, versions and the meaning of the codes.
        """
        settings = {
            name: value
            for name, value in locals().items()
            if name != "self" and not name.startswith("out_") and not name.endswith("_files")
        }
        io_it = self.get_io_iterator()
        for dwi, bvals, bvecs, *outputs in io_it:
            inputs = {"input_files": dwi, "bvalues_files": bvals, "bvectors_files": bvecs}
            paths = dict(zip(io_it.out_keys, map(Path, outputs), strict=True))
            _fit_one(inputs, settings, paths)


def _fit_one(inputs: dict, settings: dict, paths: dict[str, Path]) -> None:
    """Fit one volume and write all its outputs."""
    # Imported here: torch and the kernels take seconds, which `-h` must not.
    from dipy_spinverse.grid import bcc_grid
    from dipy_spinverse.spinverse.model import SpinverseModel

    acquisition = read_acquisition(inputs, settings)
    data, affine = load_nifti(str(inputs["input_files"]))
    if data.ndim != 4:
        raise ValueError(
            f"input_files: {inputs['input_files']} has shape {data.shape}; needs a 4-D volume "
            "with the measurements along its last axis."
        )
    mask_file = settings["mask_file"]
    mask = None if mask_file is None else load_nifti_data(mask_file).astype(bool)
    voxels = [_voxel(text, data.shape[:3]) for text in settings["mesh_voxels"] or []]

    model = SpinverseModel(
        acquisition,
        grid=bcc_grid(cells=settings["cells"], cell_size_um=settings["cell_size"]),
        diffusivity=settings["diffusivity"],
        free_diffusivity=settings["free_diffusivity"],
        optimizer=settings["optimizer"],
        device=settings["device"],
        seed=settings["seed"],
    )
    walls = settings["walls"] or _mask_of(voxels, data.shape[:3])
    fit_options = (
        "sigma",
        "free_water",
        "n_fields",
        "n_draws",
        "engine",
        "n_jobs",
        "vox_per_chunk",
        "verbose",
    )
    start = time.perf_counter()
    options = {name: settings[name] for name in fit_options}
    fit = model.fit(data, mask=mask, walls=walls, **options)
    seconds = time.perf_counter() - start

    save_maps(fit, paths, affine)
    save_nifti(paths["out_predicted"], fit.predict().astype(np.float32), affine)
    fit.save(paths["out_fit"])
    save_meshes(fit, voxels, paths["out_interface"])
    units = MAP_UNITS | OTHER_UNITS
    save_settings(paths["out_settings"], inputs, settings, fit, seconds, units=units)
    logger.info("Fitted in %.1f s, saved in %s", seconds, paths["out_fit"].parent.resolve())


def read_acquisition(inputs: dict, settings: dict) -> Acquisition:
    """Gradient files and timings of the command line as an Acquisition."""
    from dipy_spinverse.acquisition.pulsed import Acquisition

    for name in ("big_delta", "small_delta"):
        if settings[name] is None:
            raise ValueError(
                f"{name} is missing; give --{name} in seconds, as a number (--{name} 0.03) or "
                "as the path of a text file with one number per volume."
            )
    all_averages = settings["isotropic"] == "all"
    times = ("big_delta", "small_delta", "te", "mixing_time")
    return Acquisition.from_files(
        inputs["bvalues_files"],
        None if all_averages else inputs["bvectors_files"],
        **{name: _number_or_path(settings[name]) for name in times},
        isotropic=True if all_averages else settings["isotropic"],
        b0_threshold=settings["b0_threshold"],
    )


def _number_or_path(value):
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return str(value)


def _mask_of(voxels: list[tuple[int, ...]], shape: tuple[int, ...]) -> np.ndarray:
    """Mask of an image in which these voxels alone are."""
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def _voxel(text: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The voxel that ``text`` ("i,j,k") names, checked against the volume's shape."""
    try:
        index = tuple(int(part) for part in text.split(","))
    except ValueError:
        index = ()
    if len(index) != 3 or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
        last = ",".join(str(n - 1) for n in shape)
        raise ValueError(
            f"mesh_voxels: {text!r} is not a voxel of this volume; write three indices with "
            f"commas between them and no spaces, from 0,0,0 to {last}."
        )
    return index
