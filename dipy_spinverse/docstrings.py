"""Parameters of models: descriptions that all `fit` methods share, and errors that list names."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import TypeVar, cast

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
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")
_EXECUTION = ("engine", "n_jobs", "verbose", "journal", "max_memory")
FIT_PARAMETERS["execution"] = "\n".join(FIT_PARAMETERS[name] for name in _EXECUTION)
_PLACEHOLDER = re.compile(r"^([ \t]*)%\((\w+)\)s$", re.MULTILINE)


def fill_doc(function: _Function) -> _Function:
    """Replace each line ``%(name)s`` of a docstring by the entry of `FIT_PARAMETERS`."""
    if function.__doc__:  # None with python -OO
        function.__doc__ = _PLACEHOLDER.sub(_indented_entry, function.__doc__)
    return function


def naming_arguments(method: _Function) -> _Function:
    """A method whose errors for unknown keyword arguments name similar and possible ones."""

    @wraps(method)
    def checked(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except TypeError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in kwargs:
                raise
            kinds = [kind for kind in type(self).__mro__ if method.__name__ in vars(kind)]
            known = {
                name
                for kind in kinds
                for name, parameter in signature(vars(kind)[method.__name__]).parameters.items()
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            } - {"self", "definition"}
            similar = [repr(name) for name in get_close_matches(unknown[1], known, n=3)]
            meant = f"; did you mean {' or '.join(similar)}?" if similar else ";"
            called = f"{type(self).__name__}.{method.__name__}".removesuffix(".__init__")
            raise TypeError(
                f"{called} has no argument {unknown[1]!r}{meant} It has "
                f"{', '.join(sorted(known))}."
            ) from None

    return cast(_Function, checked)


def _indented_entry(placeholder):
    indent, name = placeholder.groups()
    return indent + FIT_PARAMETERS[name].replace("\n", f"\n{indent}")
