"""Descriptions of the parameters that the `fit` methods of all models share, written once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)

FIT_PARAMETERS = {
    "data": """data : array-like (..., M)
    Magnitudes, or real parts after phase correction, of one voxel or of an image of up to three
    dimensions, with the M measurements along the last axis. A voxel with negative samples is
    taken as real-valued, with Gaussian noise.""",
    "mask": """mask : array-like (...), optional
    Voxels to fit: those that are neither 0 nor NaN. All voxels by default.""",
    "sigma": """sigma : float or array-like (...), optional
    Standard deviation of the noise in each channel, in the unit of the data. By default it is
    estimated from repeated b0 measurements if there are enough, otherwise from the residual.""",
    "n_draws": """n_draws : int, optional
    Number of posterior samples per voxel, which give medians, standard deviations and 95 %
    intervals. With 0 only the most probable values are computed, which is faster.""",
    "engine": """engine : {"serial", "joblib", "dask", "ray"}, optional
    Where voxels are computed: in this process, in several processes of this machine, or on the
    cluster of the current dask client or ray session (processes of this machine if there is
    none). The results agree to rounding.""",
    "n_jobs": """n_jobs : int, optional
    Number of processes on this machine; -1 for all cores but one. Has no effect if engine is
    "serial".""",
    "verbose": """verbose : bool, optional
    Show a progress bar with the estimated time left.""",
    "journal": """journal : path, optional
    Folder in which finished voxels are stored. The same fit, started again after an interruption,
    resumes from there and gives the same result, with any engine. It can be deleted once the fit
    is saved.""",
    "max_memory": """max_memory : float, optional
    Upper limit for the memory of data and results, in bytes; half of the free memory by default.
    Temporary arrays, which do not grow with the image, come on top in each process.""",
}
_PLACEHOLDER = re.compile(r"^([ \t]*)%\((\w+)\)s$", re.MULTILINE)


def fill_doc(function: _Function) -> _Function:
    """Replace each line ``%(name)s`` of a docstring by the entry of `FIT_PARAMETERS`."""
    if function.__doc__:  # None with python -OO
        function.__doc__ = _PLACEHOLDER.sub(_indented_entry, function.__doc__)
    return function


def _indented_entry(placeholder):
    indent, name = placeholder.groups()
    return indent + FIT_PARAMETERS[name].replace("\n", f"\n{indent}")
