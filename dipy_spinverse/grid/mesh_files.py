"""Tetrahedral grids and their regions from mesh files."""

from __future__ import annotations

import signal
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from threading import current_thread, main_thread

import meshio
import numpy as np

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid

# In order of preference: meshio's names of the labels of Gmsh and Medit, and a plain one.
_REGION_NAMES = ("gmsh:physical", "medit:ref", "region", "gmsh:geometrical")
# Time limit of reading, as meshio does not terminate on some damaged files; 100 times the usual.
_LONGEST_S, _S_PER_BYTE = 10.0, 1e-5


def read_grid(
    path: str | Path, boundary: str = "absorbing", um_per_unit: float = 1.0
) -> TetrahedralGrid:
    """Read a tetrahedral grid from any file that meshio reads (VTU, VTK, Gmsh, ...).

    Parameters
    ----------
    path : str or Path
        The mesh file.
    boundary : {"absorbing", "reflecting"}, optional
        See :meth:`TetrahedralGrid.from_tetrahedra`.
    um_per_unit : float, optional
        Length of the file's unit in um (1000 for a file in mm).

    Raises
    ------
    ValueError
        A damaged or unsupported file, no tetrahedra, or tetrahedra that do not form a grid.

    Examples
    --------
    >>> import meshio, tempfile, os
    >>> points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    >>> path = os.path.join(tempfile.mkdtemp(), "two.vtu")
    >>> meshio.write_points_cells(path, points, {"tetra": [[0, 1, 2, 3], [1, 2, 3, 4]]})
    >>> read_grid(path).n_tetrahedra
    2
    """
    if not 0 < um_per_unit < np.inf:
        raise ValueError(f"um_per_unit is {um_per_unit!r}; give a length in um above 0.")
    mesh = _read_mesh(path)
    tetrahedra = mesh.get_cells_type("tetra")
    if len(tetrahedra) == 0:
        kinds = ", ".join(sorted({block.type for block in mesh.cells})) or "no cells"
        raise ValueError(
            f"path: {path} has no tetrahedra (it has {kinds}); mesh the volume with tetrahedra."
        )
    vertices, tetrahedra = np.unique(tetrahedra, return_inverse=True)
    stored = np.asarray(mesh.points)
    valid = stored.ndim == 2 and stored.shape[1] == 3 and stored.dtype.kind in "iuf"
    if (
        not valid
        or vertices.dtype.kind not in "iu"
        or not 0 <= vertices[0] <= vertices[-1] < len(stored)
    ):
        raise ValueError(
            f"path: {path} has points of shape {stored.shape} and tetrahedra of points "
            f"{vertices[0]} to {vertices[-1]}; it is damaged, mesh the volume again."
        )
    points = stored[vertices].astype(float) * um_per_unit
    if not np.isfinite(points).all():
        raise ValueError(f"path: {path} has points that are not finite; mesh the volume again.")
    return TetrahedralGrid.from_tetrahedra(points, tetrahedra.reshape(-1, 4), boundary)


def _read_mesh(path):
    """Mesh of meshio; any failure, or an endless read, becomes a ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {path}.")
    time_limit = _LONGEST_S + _S_PER_BYTE * Path(path).stat().st_size
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            _limited(time_limit),
        ):
            warnings.simplefilter("ignore")
            mesh = meshio.read(path)
            mesh.get_cells_type("tetra")
            return mesh
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"path: {path} cannot be read as a mesh ({reason}); give a complete file of VTU, "
            "VTK, Gmsh or another format that meshio reads."
        ) from error


@contextmanager
def _limited(seconds):
    """Time limit by a signal, which needs the main thread and a POSIX system."""
    possible = hasattr(signal, "setitimer") and current_thread() is main_thread()
    if not possible or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(*_):
        raise TimeoutError(f"it took more than {seconds:.0f} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def read_regions(path: str | Path) -> np.ndarray:
    """Region of each tetrahedron of a mesh file, in the order of `read_grid`.

    Parameters
    ----------
    path : str or Path
        A file with cell data named ``gmsh:physical``, ``medit:ref``, ``region`` or
        ``gmsh:geometrical``, in this order of preference.

    Returns
    -------
    ndarray (T,) of int

    Raises
    ------
    ValueError
        No such cell data.
    """
    data = _read_mesh(path).cell_data_dict
    for name in _REGION_NAMES:
        if "tetra" in data.get(name, {}):
            regions = np.asarray(data[name]["tetra"])
            if regions.ndim != 1 or not np.array_equal(regions, regions.astype(int)):
                raise ValueError(
                    f"path: {name!r} of {path} is not an integer per tetrahedron; save labels."
                )
            return regions.astype(int)
    raise ValueError(
        f"path: the tetrahedra of {path} carry {sorted(data) or 'no data'}; regions are read from "
        f"{', '.join(_REGION_NAMES)}. Save one integer per tetrahedron under one of these names."
    )
