"""Base of commands that fit a model: read, make the model, fit, write."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.report.descriptions import (
    MAP_DESCRIPTIONS,
    STATUS_DESCRIPTIONS,
    map_description,
)
from dipy_spinverse.report.images import map_paths, save_map, save_predictions
from dipy_spinverse.report.settings import run_settings, save_settings
from dipy_spinverse.workflows.command import Command, check_names

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit
    from dipy_spinverse.voxels.model import VoxelModel

logger = logging.getLogger("dipy_spinverse")

_ENDINGS = "; with its standard deviation (_std) and the ends of its 95 % interval (_low, _high)"
_COMMON = {
    "S0": ("S0.nii.gz", "Name of the map of the signal without diffusion weighting."),
    "predicted": ("predicted.nii.gz", "Name of the volumes of predicted signals."),
    "residual_rms": (
        "residual_rms.nii.gz",
        "Name of the map of the root mean square of the residuals.",
    ),
    "status": (
        "status.nii.gz",
        "Name of the map of status codes; the settings file says what they mean.",
    ),
    "fit": ("fit.npz", "Name of the file that dipy_spinverse.load_fit reads."),
    "settings": (
        "settings.json",
        "Name of the JSON file with all settings, versions and the meaning of the codes.",
    ),
}


def _map_output(name, suffix):
    unit, meaning = MAP_DESCRIPTIONS[name].unit, MAP_DESCRIPTIONS[name].meaning
    unit = "" if unit == "1" else f" ({unit})"
    return f"{name}.nii.gz", f"Name of the map of {name}{unit}: {meaning}{suffix}."


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs of a command: data (..., M), mask (...) and the acquisition or the sequences."""

    data: Any
    affine: np.ndarray
    mask: np.ndarray | None
    acquired: Any


def images_of(data: Any, affine: np.ndarray, mask_file: str | None, acquired: Any) -> Images:
    """Inputs with the mask of a file, or without a mask."""
    from dipy_spinverse.voxels.image_files import mask_of

    space = data.shape[:3], affine
    mask = None if mask_file is None else mask_of(mask_file, space, "mask_file")
    return Images(data, affine, mask, acquired)


class FitCommand(Command):
    """A command that fits a model; subclasses define `read_images` and `make_model`."""

    steps = ("make_model", "fit_options", "fit", "page")
    # Maps with intervals, other arrays, and further files.
    maps: ClassVar[tuple[str, ...]] = ()
    others: ClassVar[tuple[str, ...]] = ()
    more_outputs: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        intervals = {name: _map_output(name, _ENDINGS) for name in cls.maps if name != "S0"}
        arrays = {name: _map_output(name, "") for name in cls.others}
        cls.outputs = intervals | arrays | _COMMON | cls.more_outputs
        super().__init_subclass__(**kwargs)

    def read(self, arguments: dict[str, Any]) -> Images:
        """Read the images and their acquisition."""
        return self.call("read_images", arguments)

    def make_model(self, acquired: Any) -> VoxelModel:
        """The model of an acquisition."""
        raise NotImplementedError

    def fit_options(self, images: Images) -> dict[str, Any]:
        """Further arguments of the `fit` of this model."""
        return {}

    @fill_doc
    def fit(
        self,
        model: VoxelModel,
        images: Images,
        fit_options: dict[str, Any],
        *,
        sigma: float | None = None,
        n_draws: int | None = None,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | None = None,
    ) -> VoxelFit:
        """Fit all voxels of the mask.

        Parameters
        ----------
        %(sigma)s
        %(n_draws)s
        %(engine)s
        %(n_jobs)s
        verbose : bool, optional
            Show a progress bar with the estimated time left, even if the output is not a terminal.
        %(journal)s
        """
        if n_draws is not None:
            fit_options = fit_options | {"n_draws": n_draws}
        return model.fit(
            images.data, images.mask, sigma=sigma, engine=engine, n_jobs=n_jobs,
            verbose=verbose or sys.stderr.isatty(),
            journal=journal, **fit_options,
        )  # fmt: skip

    def write(self, fit: VoxelFit, images: Images, settings: dict, paths: dict[str, Path]) -> None:
        """Write maps, predictions, the fit itself and the settings."""
        others = [name for name in self.others if hasattr(fit, name)]
        for name in (*fit.MAPS, *others, "S0", "residual_rms", "status"):
            path = paths.get(name, paths["status"].with_name(f"{name}.nii.gz"))
            save_map(fit, name, path, images.affine)
        save_predictions(fit, paths["predicted"], images.affine, "predicted, dipy_spinverse")
        fit.save(paths["fit"])
        save_settings(paths["settings"], settings)

    def page(
        self,
        fit: VoxelFit,
        images: Images,
        settings: dict,
        paths: dict[str, Path],
        *,
        report: str | None = None,
        background: str | None = None,
    ) -> None:
        """Write a report of the fit.

        Parameters
        ----------
        report : string, optional
            Name of a report for the browser, such as report.html: maps with their intervals,
            reliability, residuals, signals, and a methods paragraph.
        background : string, optional
            Path of an image in the position of the scan, such as a T1w image of any resolution,
            that the report shows below the maps. Without it, the mean b0.
        """
        if report is None:
            return
        from dipy_spinverse.report.page import save_page
        from dipy_spinverse.voxels.image_files import resampled_volume

        space, anatomy = (images.data.shape[:3], images.affine), None
        if background is not None:
            anatomy = resampled_volume(background, space, "background")

        save_page(
            fit, paths["report"], images.data, affine=images.affine, settings=settings,
            title=(type(self).__doc__ or "").splitlines()[0].rstrip("."),
            mesh_voxels=voxels_of(settings["settings"].get("mesh_voxels"), fit.shape),
            background=anatomy,
        )  # fmt: skip

    def more_paths(self, arguments: dict[str, Any], paths: dict[str, Path]) -> dict[str, Path]:
        """The report, if requested."""
        report = arguments["report"]
        if report is None:
            return {}
        from dipy_spinverse.report import check_packages

        check_packages()
        check_names({"report": report})
        path = paths["settings"].parent / report
        path.parent.mkdir(parents=True, exist_ok=True)
        return {"report": path}

    def process(self, arguments: dict[str, Any], paths: dict[str, Path]) -> None:
        """Read, make the model, fit, write."""
        from dipy_spinverse.voxels.progress import waiting

        start, verbose = time.perf_counter(), arguments["verbose"] or sys.stderr.isatty()
        with waiting("reading the scan", verbose):
            images = self.read(arguments)
            model = self.call("make_model", arguments, images.acquired)
            fit_options = self.call("fit_options", arguments, images)
        before_fit = time.perf_counter()
        fit = self.call("fit", arguments, model, images, fit_options)
        seconds = time.perf_counter() - before_fit
        inputs = {name: value for name, value in arguments.items() if name.endswith("_files")}
        settings = {name: value for name, value in arguments.items() if name not in inputs}
        units = {name: map_description(name, fit).unit for name in (*fit.MAPS, *self.others)}
        record = run_settings(inputs, settings, fit, seconds, units)
        with waiting("writing maps", verbose):
            self.write(fit, images, record, paths)
        with waiting("writing the report", verbose):
            self.call("page", arguments, fit, images, record, paths)
        total = time.perf_counter() - start
        logger.info("%s\nTotal time: %.1f s.", status_summary(fit, seconds), total)

    def written(self, paths: dict[str, Path]) -> Iterator[Path]:
        """Files of all outputs, including the intervals of maps."""
        for name, path in paths.items():
            yield from map_paths(path) if name in self.maps else (path,)


def voxels_of(texts: list[str] | None, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Voxel indices from texts "i,j,k", checked against the shape of the volume."""
    voxels: list[tuple[int, ...]] = []
    for text in texts or []:
        try:
            index = tuple(int(number) for number in text.split(","))
        except ValueError:
            index = ()
        if len(index) != 3 or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
            max_index = ",".join(str(n - 1) for n in shape)
            raise ValueError(
                f"mesh_voxels: {text!r} is not a voxel of this volume; write three indices with "
                f"commas between them and no spaces, from 0,0,0 to {max_index}."
            )
        voxels.append(index)
    return voxels


def status_summary(fit: VoxelFit, seconds: float) -> str:
    """Number of voxels of each status."""
    from dipy_spinverse.report.summary import status_counts

    counts = status_counts(fit)
    lines = [f"{sum(count for _, count in counts)} voxels in {seconds:.1f} s:"]
    lines += [f"{count:>8} {name}: {STATUS_DESCRIPTIONS[name]}" for name, count in counts]
    return "\n".join(lines)
