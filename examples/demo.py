"""A small scan of a phantom, its fit, and a picture of maps beside the truth.

Simulates the scan of ``phantom.py``, writes it as NIfTI, runs ``dipy_fit_spinverse`` on the files
and compares its maps with the truth: a table, and ``demo.png``. Run it as ``python
examples/demo.py [folder]``; with ``--quick`` two voxels of few measurements show within a minute
that everything works.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from dipy.io.image import load_nifti_data, save_nifti
from matplotlib.colors import ListedColormap
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from phantom import (
    CSF,
    SHELLS,
    SIGMA,
    SMALL_DELTA_MS,
    TE_MS,
    THICK,
    TISSUES,
    acquisition,
    anatomy,
    simulate_scan,
)  # fmt: skip

from dipy_spinverse import PackedCellsModel

SHOWN_SLICE, VOXEL_MM = 0, 2.0
# um/ms; an interval that reaches it covers impermeable membranes, which the range of the posterior
# does not distinguish from these.
LEAST_PERMEABILITY = 1e-3
# Map, label, number format, colour map and its upper limit.
QUANTITIES = (
    ("surface_to_volume", "membrane area\nper volume (1/µm)", ".2f", "viridis", 1.0),
    ("restricted_fraction", "water in cells\n(fraction)", ".2f", "cividis", 0.8),
    ("pore_diameter", "pore diameter\n(µm)", ".1f", "plasma", 12.0),
    ("wall_permeability", "permeability\n(µm/ms)", ".3f", "YlOrRd", 0.1),
)
TISSUE_COLOURS = ("#5aa9d6", "#8d8d8d", "#f3e3c3", "#c9653f", "#d8b98a", "#8f7a4e", "#d42a5b")
# Voxels whose cells are drawn, in a cube of this edge.
DRAWN_VOXELS, CUBE_UM = ((14, 27, 0), (8, 17, 0), (2, 17, 0), (19, 9, 0)), 30.0


def write_inputs(folder, measured, data, mask):
    """The files that a scanner's converter writes, and those of the timings."""
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    save_nifti(folder / "dwi.nii.gz", data, affine)
    save_nifti(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
    np.savetxt(folder / "dwi.bval", measured.b[None] * 1000, fmt="%g")
    np.savetxt(folder / "dwi.bvec", measured.directions.T, fmt="%.8f")
    np.savetxt(folder / "big_delta.txt", measured.big_delta / 1000, fmt="%g")


def fit_on_command_line(folder, voxels, *options):
    """Run ``dipy_fit_spinverse`` on the files of the folder."""
    shutil.rmtree(folder / "fit", ignore_errors=True)
    script = Path(sys.executable).with_name("dipy_fit_spinverse")
    command = [str(script), "dwi.nii.gz", "dwi.bval", "dwi.bvec", "--mask_file", "mask.nii.gz"]
    command += ["--big_delta", "big_delta.txt", "--small_delta", f"{SMALL_DELTA_MS / 1000:g}"]
    command += ["--te", f"{TE_MS / 1000:g}", "--out_dir", "fit", "--verbose"]
    command += ["--mesh_voxels", *(",".join(map(str, voxel)) for voxel in voxels), *options]
    print("$", " ".join([script.name, *command[1:]]), flush=True)
    subprocess.run(command, cwd=folder, check=True)


def load_maps(folder):
    """All maps of the fit, by name."""
    files = (folder / "fit").glob("*.nii.gz")
    return {file.name[: -len(".nii.gz")]: load_nifti_data(str(file)) for file in files}


def print_table(labels, axes, maps):
    """Truth of each tissue, medians over its voxels of estimate and limits, and coverage."""
    for label in np.unique(labels[labels > 0]):
        tissue, voxels = TISSUES[label], labels == label
        print(f"\n{tissue.name} ({voxels.sum()} voxels)")
        for quantity, name, number, *_ in QUANTITIES:
            true = getattr(tissue, quantity)
            if np.isnan(true):
                continue
            value, low, high = (maps[quantity + end][voxels] for end in ("", "_low", "_high"))
            least = LEAST_PERMEABILITY if quantity == "wall_permeability" else 0.0
            covered = 100 * np.mean((low <= max(true, least)) & (true <= high))
            print(
                f"  {name.replace(chr(10), ' '):36} true {true:{number}}, estimated "
                f"{np.median(value):{number}} ({np.median(low):{number}} to "
                f"{np.median(high):{number}}); truth in {covered:.0f} % of the 95 % intervals"
            )
        if tissue.shape == "cylinders":
            cosine = np.einsum("vk,vjk->vj", maps["wall_orientation"][voxels], axes[voxels])
            angle = np.degrees(np.arccos(np.abs(cosine).max(axis=1).clip(max=1)))
            print(f"  axis of the closest bundle: off by {np.median(angle):.1f} degrees")


def draw_images(figure, grid, labels, axes, maps, data, measured):
    """Phantom and scan, then each map: truth, estimate, and width of its 95 % interval."""
    inside = labels[..., SHOWN_SLICE] > 0
    cells = maps["restricted_fraction"][..., SHOWN_SLICE] > 0.1
    rows = np.array([[figure.add_subplot(grid[i, j]) for j in range(6)] for i in range(3)])
    for axis in rows.flat:
        axis.set(xticks=[], yticks=[], facecolor="black")

    def show(axis, values, shown, **style):
        masked = np.where(shown.reshape(shown.shape + (1,) * (values.ndim - 2)), values, np.nan)
        masked = masked if values.ndim == 2 else np.nan_to_num(masked)
        return axis.imshow(np.swapaxes(masked, 0, 1), origin="lower", **style)

    scan = data[..., SHOWN_SLICE, :]
    colours = ListedColormap(TISSUE_COLOURS)
    show(rows[0, 0], labels[..., SHOWN_SLICE] + 0.0, inside, cmap=colours, vmin=1, vmax=7)
    for axis, volumes in ((rows[1, 0], measured.b0_mask), (rows[2, 0], measured.b == max(SHELLS))):
        show(axis, scan[..., volumes].mean(axis=-1), inside, cmap="gray", vmin=0)
    for axis, name in zip(
        rows[:, 0], ("phantom", "b = 0 (bar: 10 mm)", "b = 6000 s/mm²"), strict=True
    ):
        axis.set_xlabel(name, fontsize=8)
    for column, (quantity, name, _, colour_map, limit) in enumerate(QUANTITIES, start=1):
        true = np.array([np.nan, *(getattr(TISSUES[k], quantity) for k in sorted(TISSUES))])
        truth = true[labels[..., SHOWN_SLICE]]
        value, low, high = (maps[quantity + e][..., SHOWN_SLICE] for e in ("", "_low", "_high"))
        shown = cells if np.isnan(truth[inside]).any() else inside
        style = {"cmap": plt.get_cmap(colour_map).with_extremes(bad="0.25"), "vmin": 0}
        for axis, values in zip(rows[:, column], (truth, value, high - low), strict=True):
            image = show(axis, values, inside if values is truth else shown, vmax=limit, **style)
        rows[0, column].set_title(name, fontsize=9)
        bar = figure.add_subplot(grid[3, column])
        figure.colorbar(image, cax=bar, orientation="horizontal", extend="max")
    orientation = np.abs(axes).mean(axis=-2)[..., SHOWN_SLICE, :]
    cylinders = np.isin(labels, [k for k, t in TISSUES.items() if t.shape == "cylinders"])
    show(rows[0, 5], orientation, cylinders[..., SHOWN_SLICE])
    anisotropy = maps["wall_anisotropy"][..., SHOWN_SLICE, None]
    show(rows[1, 5], np.abs(maps["wall_orientation"][..., SHOWN_SLICE, :]) * anisotropy, cells)
    style = {"cmap": plt.get_cmap("gray").with_extremes(bad="0.25"), "vmin": 0, "vmax": 90}
    image = show(rows[2, 5], maps["wall_orientation_angle"][..., SHOWN_SLICE], cells, **style)
    rows[0, 5].set_title("axis (red x, green y,\nblue z); cone (°)", fontsize=9)
    figure.colorbar(image, cax=figure.add_subplot(grid[3, 5]), orientation="horizontal")
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in TISSUE_COLOURS]
    names = [TISSUES[label].name for label in sorted(TISSUES)]
    figure.legend(patches, names, loc="outside upper center", ncols=7, fontsize=7.5, frameon=False,
                  handlelength=1, columnspacing=1.2)  # fmt: skip
    for axis, name in zip(rows[:, 1], ("truth", "estimate", "95 % interval, width"), strict=True):
        axis.set_ylabel(name, fontsize=9)
    rows[1, 0].plot([1, 1 + 10 / VOXEL_MM], [1, 1], color="white", linewidth=2)
    return rows


def cell_surfaces(shape, radius, fraction, axis, rng):
    """Quadrilaterals (n, 4, 3) and normals (n, 3) of equal cells in a cube of `CUBE_UM`, um.

    They are around the points of a close-packed lattice, displaced at random without contact.
    """
    n = 1 + int(CUBE_UM / radius)
    index = np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    spherical = shape == "spheres"
    if spherical:
        spacing = radius * (np.sqrt(2) * 4 / 3 * np.pi / fraction) ** (1 / 3)
        centres = spacing / np.sqrt(2) * index[index.sum(axis=1) % 2 == 0]
    else:
        spacing = radius * np.sqrt(2 / np.sqrt(3) * np.pi / fraction)
        centres = spacing * index[index[:, 2] == 0] @ [[1, 0, 0], [0.5, 0.75**0.5, 0], [0, 0, 0]]
    shift = rng.normal(size=centres.shape) * (1, 1, spherical)
    room = max(spacing / 2 - radius, 0) / np.linalg.norm(shift, axis=1, keepdims=True)
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    across /= np.linalg.norm(across)
    frame = np.stack([across, np.cross(axis, across), axis])
    centres = (centres + room * shift) @ frame
    # Where the lines through the centres enter and leave the cube.
    with np.errstate(divide="ignore"):
        slabs = np.sort((CUBE_UM / 2 * np.array([[-1], [1]]) - centres[:, None]) / axis, axis=1)
    start, stop = slabs[:, 0].max(axis=1), slabs[:, 1].min(axis=1)
    chosen = (
        (np.abs(centres) < CUBE_UM / 2).all(axis=1) if spherical else stop - start > 2 * radius
    )
    around = 2 * np.pi * np.linspace(0, 1, 33)
    polar = np.pi * np.linspace(0, 1, 17)[:, None] if spherical else np.full((9, 1), np.pi / 2)
    normals = np.stack(np.broadcast_arrays(np.sin(polar) * np.cos(around),
                                           np.sin(polar) * np.sin(around),
                                           np.cos(polar)), axis=-1) @ frame  # fmt: skip
    surfaces = centres[chosen][:, None, None] + radius * normals
    if not spherical:
        along = np.linspace(start[chosen], stop[chosen], len(polar), axis=1)
        surfaces = surfaces + along[:, :, None, None] * axis
    corners = [surfaces[:, i : len(polar) - 1 + i, j : 32 + j] for i, j in
               ((0, 0), (1, 0), (1, 1), (0, 1))]  # fmt: skip
    quadrilaterals = np.stack(corners, axis=-2)
    normals = np.broadcast_to(normals[:-1, :-1], quadrilaterals.shape[:3] + (3,))
    return quadrilaterals.reshape(-1, 4, 3), normals.reshape(-1, 3)


def draw_cells(axis, surfaces, colour):
    """Cells in a cube, with shading."""
    quadrilaterals, normals = surfaces
    shade = 0.35 + 0.65 * np.abs(normals @ np.array([0.35, -0.75, 0.55]))[:, None]
    colours = np.append(shade * colour[:3], np.ones((len(shade), 1)), axis=1)
    axis.add_collection3d(Poly3DCollection(quadrilaterals, facecolors=colours, edgecolors=colours,
                                           linewidths=0.2))  # fmt: skip
    corners = CUBE_UM / 2 * np.array(np.meshgrid(*[[-1, 1]] * 3, indexing="ij")).reshape(3, 8).T
    edges = [(p, q) for p in corners for q in corners if np.sum(p != q) == 1]
    axis.add_collection3d(Line3DCollection(edges, colors="0.5", linewidths=0.6))
    limits = (-CUBE_UM / 2, CUBE_UM / 2)
    axis.set(xlim=limits, ylim=limits, zlim=limits)
    axis.set_box_aspect((1, 1, 1), zoom=1.02)
    axis.set_axis_off()


def draw_samples(figure, grid, labels, axes, data, measured):
    """Cells of the phantom and of posterior samples of some voxels, coloured by permeability."""
    posterior = PackedCellsModel(measured).posterior(
        np.array([data[voxel] for voxel in DRAWN_VOXELS]), SIGMA, 2
    )
    rng, (_, _, _, name, limit) = np.random.default_rng(0), QUANTITIES[-1]
    colours = plt.cm.ScalarMappable(plt.Normalize(0, limit), name)
    for column, voxel in enumerate(DRAWN_VOXELS):
        tissue, axis = TISSUES[labels[voxel]], axes[voxel][0]
        drawn = [(tissue.shape, tissue.radius, tissue.restricted_fraction, axis,
                  tissue.wall_permeability)]  # fmt: skip
        for k in range(2):
            sample = {n: v[k, column] for n, v in posterior.parameters.items()}
            in_spheres = sample["sphere_share"] > 0.5
            prefix = "sphere_" if in_spheres else ""
            values = [sample[prefix + n] for n in ("radius", "fraction", "permeability")]
            direction = posterior.maps["wall_orientation"][k, column]
            direction = axis if in_spheres else direction
            drawn.append(("spheres" if in_spheres else "cylinders", *values[:2], direction,
                          values[2]))  # fmt: skip
        for row, (*cells, permeability) in enumerate(drawn):
            panel = figure.add_subplot(grid[row, column], projection="3d")
            draw_cells(panel, cell_surfaces(*cells, rng), colours.to_rgba(permeability))
            if row == 0:
                panel.set_title(tissue.name, fontsize=9, y=1.02)
            if column == 0:
                label = ("truth", "posterior sample", "another sample")[row]
                panel.text2D(-0.06, 0.5, label, transform=panel.transAxes, rotation=90,
                             va="center", fontsize=9)  # fmt: skip
    panel.text2D(0.5, -0.06, f"edges {CUBE_UM:g} µm", transform=panel.transAxes, fontsize=8)


def draw(folder, labels, axes, maps, data, measured):
    """Maps and cells in one picture."""
    plt.rcParams.update({"xtick.labelsize": 8})
    figure = plt.figure(figsize=(8.6, 11), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    top, bottom = figure.add_gridspec(2, 1, height_ratios=(1, 0.86))
    images = top.subgridspec(4, 6, height_ratios=(1, 1, 1, 0.06))
    draw_images(figure, images, labels, axes, maps, data, measured)
    draw_samples(figure, bottom.subgridspec(3, 4), labels, axes, data, measured)
    figure.savefig(folder / "demo.png", dpi=200)


def quick(folder):
    """Free water and axons: accurate maps, and a mesh of one posterior sample of the walls."""
    measured, labels = acquisition(8, (19.0, 49.0)), np.array([CSF, THICK]).reshape(2, 1, 1)
    axes = np.broadcast_to([0.0, 0.0, 1.0], (2, 1, 1, 2, 3))
    data = simulate_scan(measured, labels, axes)
    write_inputs(folder, measured, data, labels > 0)
    fit_on_command_line(folder, [(1, 0, 0)], "--n_fields", "1")
    maps, truth = load_maps(folder), TISSUES[THICK]
    print_table(labels, axes, maps)
    # Few measurements leave an sd of .05, and of a fifth of S/V.
    water, axons = maps["restricted_fraction"].ravel()
    assert water < 0.1 and abs(axons / truth.restricted_fraction - 1) < 0.5
    water, axons = maps["surface_to_volume"].ravel()
    assert water < 0.05 and abs(axons / truth.surface_to_volume - 1) < 0.5
    assert abs(maps["wall_orientation"][1, 0, 0, 2]) > 0.9
    assert np.sqrt(((maps["predicted"] - data) ** 2).mean()) < 2 * SIGMA
    assert list((folder / "fit").glob("interface_1_0_0*.vtu"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default="demo_output")
    parser.add_argument("--quick", action="store_true", help="two voxels, for a check")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        return quick(folder)
    measured, (labels, axes) = acquisition(), anatomy()
    print(f"Simulating {(labels > 0).sum()} voxels, {len(measured)} volumes ...", flush=True)
    data = simulate_scan(measured, labels, axes)
    write_inputs(folder, measured, data, labels > 0)
    fit_on_command_line(folder, DRAWN_VOXELS, "--report", "report.html", "--engine", "joblib",
                        "--n_jobs", "2")  # fmt: skip
    maps = load_maps(folder)
    print_table(labels, axes, maps)
    draw(folder, labels, axes, maps, data, measured)
    print(
        f"\nThe picture is {folder / 'demo.png'}, maps and meshes are in {folder / 'fit'}; "
        f"open {folder / 'fit' / 'report.html'} in a browser."
    )


if __name__ == "__main__":
    main()
