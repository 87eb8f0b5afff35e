"""Volumes of a fit for the viewer of a page: cropped, in 8 bits, from left to right first."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from dipy_spinverse.report.descriptions import map_description
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED

# Voxels around the mask that show the anatomy, and values of all volumes: beyond, slices are left
# out, so that pages stay below 15 MB. By hand.
_MARGIN = 6
_MAX_VALUES = 7_000_000
_CODES = 254  # of values; 0 is reserved for voxels that were not fitted


def viewer_volumes(
    fit: VoxelFit, data: Any, affine: np.ndarray, background: np.ndarray | None = None
) -> tuple[dict[str, Any], bytes]:
    """What a viewer has to know, and the volumes one after the other, one byte a voxel.

    Axes are to the right, anterior and superior, the first the slowest. Volumes are the
    background, by default the mean signal without diffusion weighting; the status; and of each map
    the estimate, the limits of its 95 % interval and their difference, on one scale.
    """
    shape = (*fit.shape, *(1,) * (3 - len(fit.shape)))
    status = fit.status.reshape(shape)
    voxels = np.argwhere(status > 0)
    voxels = voxels if len(voxels) else np.zeros((1, 3), dtype=int)
    low = np.maximum(voxels.min(axis=0) - _MARGIN, 0)
    high = np.minimum(voxels.max(axis=0) + _MARGIN + 1, shape)
    n_values = (2 + 4 * len(fit.MAPS)) * np.prod(high - low)
    step = np.array([1, 1, max(1, int(np.ceil(n_values / _MAX_VALUES)))])
    box = tuple(slice(*edges) for edges in zip(low, high, step, strict=True))
    orientation = nib.io_orientation(affine)
    fitted = np.isin(status, FITTED)

    def volume(codes):
        return np.ascontiguousarray(nib.apply_orientation(codes[box], orientation), np.uint8)

    if background is None:
        b0 = np.flatnonzero(getattr(fit.model.acquisition, "b0_mask", np.ones(1, dtype=bool)))
        # A few volumes: data may be a file that is read volume by volume.
        background = np.mean([np.asarray(data[..., m], dtype=float) for m in b0[:4]], axis=0)
    anatomy = np.nan_to_num(background).reshape(shape)
    brightest = max(float(np.quantile(anatomy[box], 0.995)), 1e-30)
    volumes = [volume(255 * np.clip(anatomy / brightest, 0, 1)), volume(status)]
    maps = []
    for name in fit.MAPS:
        estimate, *limits = (
            np.asarray(getattr(fit, name + end), dtype=float).reshape(shape)
            for end in ("", "_low", "_high")
            if hasattr(fit, name + end)
        )
        unit, meaning = map_description(name, fit)
        shown = {"estimate": estimate}
        if limits:
            shown = {"lower limit": limits[0], **shown, "upper limit": limits[1],
                     "interval width": limits[1] - limits[0]}  # fmt: skip
        least, most = _scale(estimate[fitted], limits and limits[1][fitted], unit)
        for values in shown.values():
            relative = np.clip((values - least) / (most - least), 0, 1)
            volumes.append(volume(np.where(fitted, 1 + np.rint(_CODES * relative), 0)))
        maps.append({"name": name, "unit": unit if unit != "1" else "", "meaning": meaning,
                     "panels": list(shown), "least": least, "most": most})  # fmt: skip
    axes = [
        {"axis": int(axis), "flip": bool(flip < 0), "start": int(a), "step": int(s)}
        for (axis, flip), a, s in zip(orientation, low, step, strict=True)
    ]
    size = np.linalg.norm(affine[:3, :3], axis=0) * step
    of_axis = np.argsort(orientation[:, 0])
    about = {
        "shape": list(volumes[0].shape), "size": size[of_axis].tolist(), "axes": axes,
        "maps": maps, "slices_skipped": bool(step[2] > 1),
    }  # fmt: skip
    return about, b"".join(part.tobytes() for part in volumes)


def _scale(estimate, upper, unit):
    """Limits of the colours: room for upper limits, but not where these are nearly unbounded."""
    if not estimate.size:
        return 0.0, 1.0
    least, most = np.quantile(estimate, [0.01, 0.99])
    if len(upper):
        most = min(max(most, np.quantile(upper, 0.9)), 2 * most if unit != "1" else 1.0)
    least = min(float(least), 0.0)
    return least, float(most) if most > least else least + 1.0
