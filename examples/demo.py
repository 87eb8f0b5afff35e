"""From a small simulated volume to maps and meshes of its walls, and how far they are right.

Simulates a volume of 4 x 4 x 2 voxels, cylinders on grids that follow their membranes and spheres
on a lattice four times finer than the fit's, adds Rician noise, writes it as NIfTI, runs
``dipy_fit_spinverse`` on the files and compares its maps with the truth: a table, and
``demo.png``. Run it as ``python examples/demo.py [folder]``; with ``--quick`` two voxels of few
measurements show within a minute that everything works.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import meshio
import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.io.image import load_nifti_data, save_nifti
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from dipy_spinverse import Acquisition, bcc_grid, simulate
from dipy_spinverse.bloch_torrey.finite_elements.operator import simulate_finite_elements
from dipy_spinverse.grid.packed_cylinders import packed_cylinders_grid
from dipy_spinverse.grid.regions import membranes_between
from dipy_spinverse.substrates.membranes import spheres

SHAPE = (4, 4, 2)
BOX_UM = 20.0
CYLINDER_EDGE_UM = 0.8  # of the triangles: signals within 4e-4 of those of .55 um
SPHERE_CELLS = 16  # lattice cubes of 1.25 um: the fit's have 5
DIFFUSIVITY = 2.0  # um^2/ms
S0 = 1000.0
SNR = 50.0
SMALL_DELTA_MS, BIG_DELTAS_MS, TE_MS = 10.0, (20.0, 40.0, 60.0), 80.0
SHELLS = (1.0, 2.0, 3.0, 5.0)  # ms/um^2
N_DIRECTIONS, N_B0 = 12, 2
QUICK_DIRECTIONS, QUICK_BIG_DELTAS_MS = 6, (20.0, 60.0)
# um/ms; an interval that reaches it covers impermeable walls, which the range of the posterior
# does not distinguish from these.
LEAST_PERMEABILITY = 1e-3
EMPTY_VOXEL, NAN_VOXEL = (3, 3, 1), (0, 3, 1)
MESH_VOXELS = ((1, 0, 0), (1, 1, 0), (3, 0, 0))
# Map, label, number format.
QUANTITIES = (
    ("surface_to_volume", "S/V (1/um)", ".3f"),
    ("restricted_fraction", "restricted fraction", ".2f"),
    ("wall_permeability", "kappa (um/ms)", ".3f"),
    ("pore_diameter", "pore diameter (um)", ".1f"),
)


@dataclass(frozen=True)
class Truth:
    """What a voxel of the demo contains; lengths in um, permeability in um/ms."""

    name: str
    surface_to_volume: float = 0.0
    restricted_fraction: float = 0.0
    wall_permeability: float = np.nan
    pore_diameter: float = np.nan
    axis: tuple[float, float, float] | None = None


def packed_cylinders(measured, radius, axis, permeability=0.0):
    """Parallel cylinders on a square lattice: what is true of them, and their signals."""
    side = BOX_UM / 2
    grid, region = packed_cylinders_grid(side, [[0, 0]], radius, CYLINDER_EDGE_UM)
    walls = membranes_between(grid, region, permeability)
    # The grid's cylinders are along z; turning the gradients turns them to any other axis.
    turned = np.roll(measured.directions, 2 - np.argmax(axis), axis=1)
    signals = simulate_finite_elements(
        replace(measured, directions=turned), grid, walls, diffusivity=DIFFUSIVITY
    )
    truth = Truth(
        f"cylinders r {radius:g} {'xyz'[np.argmax(axis)]}, kappa {permeability:g}",
        surface_to_volume=2 * np.pi * radius / side**2,
        restricted_fraction=np.pi * radius**2 / side**2,
        wall_permeability=permeability,
        pore_diameter=2 * radius,
        axis=axis,
    )
    return truth, signals


def packed_spheres(measured, radius):
    """Two impermeable spheres on a body-centred lattice: what is true of them, their signals."""
    grid = bcc_grid(cells=SPHERE_CELLS, cell_size_um=BOX_UM / SPHERE_CELLS)
    truth = Truth(
        f"spheres r {radius:g}, kappa 0",
        surface_to_volume=2 * 4 * np.pi * radius**2 / BOX_UM**3,
        restricted_fraction=2 * 4 / 3 * np.pi * radius**3 / BOX_UM**3,
        wall_permeability=0.0,
        pore_diameter=4 / 3 * radius,  # mean chord length, as in the map
    )
    walls = spheres(grid, [[0, 0, 0], [BOX_UM / 2] * 3], radius)
    return truth, simulate(measured, grid, walls, diffusivity=DIFFUSIVITY, dtype="float32")


def substrates(measured):
    """Truths of the eight substrates of the volume, and their signals (8, M) without noise."""
    x, z = (1, 0, 0), (0, 0, 1)
    return zip(
        (Truth("free water"), np.exp(-measured.b * DIFFUSIVITY)),
        packed_cylinders(measured, 3.0, z),
        packed_cylinders(measured, 3.0, x),
        packed_spheres(measured, 7.5),
        packed_cylinders(measured, 4.25, z),
        packed_cylinders(measured, 4.25, x),
        packed_cylinders(measured, 4.25, z, permeability=0.02),
        packed_cylinders(measured, 4.25, z, permeability=0.1),
        strict=True,
    )


def acquisition(n_directions=N_DIRECTIONS, big_deltas=BIG_DELTAS_MS):
    """Two b0 and four shells at each diffusion time; one echo time."""
    rng = np.random.default_rng(1)
    start = HemiSphere(
        theta=np.arccos(rng.uniform(0, 1, n_directions)),
        phi=2 * np.pi * rng.uniform(0, 1, n_directions),
    )
    vertices = disperse_charges(start, 2000)[0].vertices
    directions = np.vstack([np.zeros((N_B0, 3)), *[vertices] * len(SHELLS)])
    b = np.repeat((0.0, *SHELLS), (N_B0, *[n_directions] * len(SHELLS)))
    timings = len(big_deltas)
    return Acquisition(
        b=np.tile(b, timings),
        directions=np.tile(directions, (timings, 1)),
        small_delta=SMALL_DELTA_MS,
        big_delta=np.repeat(big_deltas, b.size),
        te=TE_MS,
    )


def truth_of(truths, voxel):
    """The truth of a voxel, or None where there is nothing to recover."""
    x, y, _ = voxel
    return None if voxel in (EMPTY_VOXEL, NAN_VOXEL) else truths[4 * (y % 2) + x]


def simulate_volume(measured):
    """Truths of the eight substrates, and the noisy volume that repeats each four times."""
    truths, signals = substrates(measured)
    x, y, _ = np.indices(SHAPE)
    data = with_noise(np.array(signals)[4 * (y % 2) + x])
    data[EMPTY_VOXEL] = 0
    data[NAN_VOXEL][7] = np.nan
    return truths, data


def with_noise(signals):
    """Magnitudes of signals relative to S0, with Rician noise."""
    noise = np.random.default_rng(2).normal(scale=S0 / SNR, size=(2, *signals.shape))
    return np.hypot(S0 * signals + noise[0], noise[1]).astype(np.float32)


def write_inputs(folder, measured, data):
    """The files that a scanner's converter writes, and those of the timings."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    save_nifti(folder / "dwi.nii.gz", data, affine)
    np.savetxt(folder / "dwi.bval", measured.b[None] * 1000, fmt="%g")
    np.savetxt(folder / "dwi.bvec", measured.directions.T, fmt="%.8f")
    np.savetxt(folder / "big_delta.txt", measured.big_delta / 1000, fmt="%g")


def fit_on_command_line(folder, voxels=MESH_VOXELS, options=()):
    """Run ``dipy_fit_spinverse`` on the files of the folder."""
    shutil.rmtree(folder / "fit", ignore_errors=True)
    script = Path(sys.executable).with_name("dipy_fit_spinverse")
    command = [str(script), "dwi.nii.gz", "dwi.bval", "dwi.bvec"]
    command += ["--big_delta", "big_delta.txt", "--small_delta", f"{SMALL_DELTA_MS / 1000:g}"]
    command += ["--te", f"{TE_MS / 1000:g}", "--out_dir", "fit"]
    command += ["--mesh_voxels", *(",".join(map(str, voxel)) for voxel in voxels), *options]
    print("$", " ".join([script.name, *command[1:]]), flush=True)
    subprocess.run(command, cwd=folder, check=True)


def load_maps(folder):
    """The maps that the command line wrote, by name."""
    names = [quantity for quantity, _, _ in QUANTITIES]
    names += [name + end for end in ("_low", "_high") for name in names]
    names += ["wall_orientation", "status"]
    return {name: load_nifti_data(str(folder / "fit" / f"{name}.nii.gz")) for name in names}


def print_table(truths, maps, status_names):
    """One line per voxel, by substrate: truth | estimate and 95 % interval of each map."""
    header = "".join(f"{label:>29}" for _, label, _ in QUANTITIES)
    print(f"\n{'substrate':<31}{'voxel':<7}{'status':<24}{header}{'axis off':>10}")
    covered = {label: [] for _, label, _ in QUANTITIES}
    for voxel in sorted(np.ndindex(*SHAPE), key=lambda voxel: (voxel[1] % 2, voxel[0])):
        truth = truth_of(truths, voxel)
        name = truth.name if truth else {EMPTY_VOXEL: "empty", NAN_VOXEL: "NaN sample"}[voxel]
        line = f"{name:<31}{','.join(map(str, voxel)):<7}{status_names[maps['status'][voxel]]:<24}"
        for quantity, label, number in QUANTITIES if truth else ():
            true = getattr(truth, quantity)
            value, low, high = (maps[quantity + end][voxel] for end in ("", "_low", "_high"))
            expected = "-" if np.isnan(true) else f"{true:{number}}"
            line += f"{expected:>10} |{value:>6{number}} [{low:{number}}, {high:{number}}]"
            if not np.isnan(true):
                least = LEAST_PERMEABILITY if quantity == "wall_permeability" else 0.0
                covered[label].append(low <= max(true, least) and true <= high)
        if truth and truth.axis:
            cosine = abs(np.dot(maps["wall_orientation"][voxel], truth.axis))
            line += f"{np.degrees(np.arccos(min(cosine, 1))):>6.0f} deg"
        print(line)
    shares = [f"{label} {sum(hits)} of {len(hits)}" for label, hits in covered.items()]
    print(f"\nTruth within the 95 % interval: {', '.join(shares)}.")


def draw_maps(axes, truths, maps):
    """The truth, which both slices share, and both slices of each map."""
    for axis, (quantity, label, _) in zip(axes, QUANTITIES, strict=True):
        true = np.array([getattr(truth, quantity) for truth in truths]).reshape(2, 4)
        gap = np.full((SHAPE[1], 1), np.nan)
        slices = [part for k in range(SHAPE[2]) for part in (gap, maps[quantity][:, :, k].T)]
        tiles = np.hstack([np.tile(true, (2, 1)), *slices])
        image = axis.imshow(tiles, origin="lower", vmin=0, vmax=1.3 * np.nanmax(true))
        axis.figure.colorbar(image, ax=axis, location="bottom", shrink=0.9)
        axis.set_title(label)
        axis.set_xticks([1.5, 6.5, 11.5], ["truth", "fit, slice 0", "fit, slice 1"])
        axis.set_yticks([])


def draw_agreement(axes, truths, maps):
    """Estimate against truth with 95 % intervals, one panel per map, one colour per substrate."""
    for axis, (quantity, label, _) in zip(axes, QUANTITIES, strict=True):
        limit = 1.3 * np.nanmax([getattr(truth, quantity) for truth in truths])
        for voxel in np.ndindex(*SHAPE):
            truth = truth_of(truths, voxel)
            if truth is None or np.isnan(getattr(truth, quantity)):
                continue
            index = truths.index(truth)
            axis.errorbar(
                # Substrates with one true value stand side by side.
                getattr(truth, quantity) + 0.012 * limit * (index - 3.5),
                maps[quantity][voxel],
                [
                    [maps[quantity][voxel] - maps[f"{quantity}_low"][voxel]],
                    [maps[f"{quantity}_high"][voxel] - maps[quantity][voxel]],
                ],
                fmt="o",
                markersize=4,
                capsize=2,
                alpha=0.7,
                color=f"C{index}",
            )
        axis.plot([0, limit], [0, limit], "k--", linewidth=0.8)
        axis.set(xlabel=f"true {label}", ylabel=f"estimated {label}")
        top = max(limit, min(axis.get_ylim()[1], 3 * limit))
        axis.set_ylim(-0.02 * top, top)


def draw_meshes(figure, positions, truths, folder):
    """The walls of some voxels, coloured by how probable each is."""
    colours = plt.cm.ScalarMappable(plt.Normalize(0.0, 1.0), "viridis")
    axes = []
    for position, voxel in zip(positions, MESH_VOXELS, strict=True):
        axis = figure.add_subplot(position, projection="3d")
        axes.append(axis)
        limits = (-BOX_UM / 2, BOX_UM / 2)
        axis.set(xlim=limits, ylim=limits, zlim=limits, xlabel="x (um)", ylabel="y", zlabel="z")
        stem, doubt = f"interface_{'_'.join(map(str, voxel))}", ""
        path = folder / "fit" / f"{stem}.vtu"
        if not path.exists():
            path = folder / "fit" / f"{stem}_one_of_many.vtu"
            doubt = "pattern not determined: one of many"
        title = f"walls of voxel {voxel}, {truth_of(truths, voxel).name}\n{doubt}"
        axis.set_title(title, fontsize=10)
        if path.exists():
            mesh = meshio.read(path)
            faces = mesh.points[mesh.cells_dict["triangle"]]
            probability = mesh.cell_data_dict["wall_probability"]["triangle"]
            walls = Poly3DCollection(
                faces, facecolors=colours.to_rgba(probability), edgecolor="k", linewidth=0.2
            )
            axis.add_collection3d(walls)
    label = "proportion of posterior samples with this wall"
    figure.colorbar(colours, ax=axes, label=label, shrink=0.7)


def draw(folder, truths, maps):
    """Maps, agreement with the truth and meshes in one picture."""
    figure = plt.figure(figsize=(18, 12.5), layout="constrained")
    rows = figure.add_gridspec(3, 12, height_ratios=(0.4, 1, 1.2))
    columns = [slice(3 * i, 3 * i + 3) for i in range(4)]
    draw_maps([figure.add_subplot(rows[0, c]) for c in columns], truths, maps)
    draw_agreement([figure.add_subplot(rows[1, c]) for c in columns], truths, maps)
    draw_meshes(figure, [rows[2, 4 * i : 4 * i + 4] for i in range(3)], truths, folder)
    handles = [plt.Line2D([], [], marker="o", ls="", color=f"C{i}") for i in range(len(truths))]
    names = [truth.name for truth in truths]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=9)
    figure.savefig(folder / "demo.png", dpi=100)


def quick(folder):
    """Free water and cylinders: accurate maps, and a mesh of one posterior sample of the walls."""
    measured = acquisition(QUICK_DIRECTIONS, QUICK_BIG_DELTAS_MS)
    truth, signals = packed_cylinders(measured, 3.0, (0, 0, 1))
    data = with_noise(np.array([np.exp(-measured.b * DIFFUSIVITY), signals])[:, None, None])
    write_inputs(folder, measured, data)
    fit_on_command_line(folder, [(1, 0, 0)], ["--n_fields", "1"])

    maps = {name: values[:, 0, 0] for name, values in load_maps(folder).items()}
    print({name: maps[name].round(3).tolist() for name, _, _ in QUANTITIES}, truth)
    water, cylinders = maps["restricted_fraction"]
    # Few measurements leave an sd of .05, and of a fifth of S/V.
    assert water < 0.1 and abs(cylinders / truth.restricted_fraction - 1) < 0.5
    water, cylinders = maps["surface_to_volume"]
    assert water < 0.05 and abs(cylinders / truth.surface_to_volume - 1) < 0.5
    assert abs(maps["wall_orientation"][1] @ truth.axis) > 0.9
    predicted = load_nifti_data(str(folder / "fit" / "predicted.nii.gz"))
    assert np.sqrt(((predicted - data) ** 2).mean()) < 2 * S0 / SNR
    (mesh,) = (folder / "fit").glob("interface_1_0_0*.vtu")
    assert len(meshio.read(mesh).points) > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default="demo_output")
    parser.add_argument("--quick", action="store_true", help="two voxels, for a check")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        return quick(folder)
    measured = acquisition()
    print(f"Simulating {SHAPE} voxels: {measured}", flush=True)
    truths, data = simulate_volume(measured)
    write_inputs(folder, measured, data)
    fit_on_command_line(folder)

    maps = load_maps(folder)
    settings = json.loads((folder / "fit" / "settings.json").read_text())
    status_names = {entry["code"]: name for name, entry in settings["status"].items()}
    print_table(truths, maps, status_names)
    draw(folder, truths, maps)
    print(f"\nMaps and meshes are in {folder / 'fit'}, the picture is {folder / 'demo.png'}.")


if __name__ == "__main__":
    main()
