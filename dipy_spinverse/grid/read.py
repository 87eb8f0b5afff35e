"""Reading tetrahedral grids, and their regions, from mesh files."""

from __future__ import annotations

from pathlib import Path

import meshio
import numpy as np

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid

# the first that a file has; meshio's names of what Gmsh and Medit write, and a plain one
_REGION_NAMES = ("gmsh:physical", "medit:ref", "region", "gmsh:geometrical")


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

    Returns
    -------
    TetrahedralGrid

    Raises
    ------
    ValueError
        The file holds no tetrahedra, or they do not form a grid.

    Examples
    --------
    >>> import meshio, tempfile, os
    >>> points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    >>> path = os.path.join(tempfile.mkdtemp(), "two.vtu")
    >>> meshio.write_points_cells(path, points, {"tetra": [[0, 1, 2, 3], [1, 2, 3, 4]]})
    >>> read_grid(path).n_tetrahedra
    2
    """
    mesh = meshio.read(path)
    tetrahedra = mesh.get_cells_type("tetra")
    if len(tetrahedra) == 0:
        kinds = ", ".join(sorted({block.type for block in mesh.cells})) or "no cells"
        raise ValueError(
            f"path: {path} holds no tetrahedra (it has {kinds}); mesh the volume with tetrahedra."
        )
    used, tetrahedra = np.unique(tetrahedra, return_inverse=True)
    points = mesh.points[used] * um_per_unit
    return TetrahedralGrid.from_tetrahedra(points, tetrahedra.reshape(-1, 4), boundary)


def read_regions(path: str | Path) -> np.ndarray:
    """Region of each tetrahedron of a mesh file, as the grid that `read_grid` makes of it.

    Parameters
    ----------
    path : str or Path
        A file whose tetrahedra carry one of ``gmsh:physical``, ``medit:ref``, ``region`` or
        ``gmsh:geometrical``, in this order.

    Returns
    -------
    ndarray (T,) of int

    Raises
    ------
    ValueError
        The tetrahedra carry none of these.

    Examples
    --------
    >>> import meshio, tempfile, os
    >>> points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    >>> path = os.path.join(tempfile.mkdtemp(), "two.vtu")
    >>> meshio.write_points_cells(path, points, {"tetra": [[0, 1, 2, 3], [1, 2, 3, 4]]},
    ...                           cell_data={"region": [[1, 2]]})
    >>> read_regions(path)
    array([1, 2])
    """
    data = meshio.read(path).cell_data_dict
    for name in _REGION_NAMES:
        if "tetra" in data.get(name, {}):
            return np.asarray(data[name]["tetra"]).astype(int)
    raise ValueError(
        f"path: the tetrahedra of {path} carry {sorted(data) or 'no data'}; regions are read from "
        f"{', '.join(_REGION_NAMES)}. Save one integer per tetrahedron under one of these names."
    )
