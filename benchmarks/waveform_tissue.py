"""Packed cells under free waveforms: errors of their signals, and coverage of intervals.

- errors: random packings of parallel cylinders (finite elements) and spheres (finite volumes),
  each under five of nine kinds of waveforms. A packing has few cells: its deviation from the mean
  is part of the difference, as the row of pulsed gradients shows.
- intervals: voxels of such cylinders in any direction, or spheres, and 0 to 20 % of free water,
  under linear, planar and spherical b-tensors, a cosine and double diffusion, with Rician noise.

    python -m benchmarks.waveform_tissue FOLDER

Simulations are kept in FOLDER; an interrupted run resumes. Duration: 6 CPU-min (--quick: 1 min).
Writes results/waveform_tissue.md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.make_emulator import between, scattered
from benchmarks.tables import machine, table
from benchmarks.waveform_packings import cylinder_signals, sphere_signals
from dipy_spinverse import PackedCellsModel, Status
from dipy_spinverse.acquisition import WaveformAcquisition, acquisition_from_arrays
from dipy_spinverse.acquisition.encodings import (
    b_tensor_encoding,
    concatenate,
    double_diffusion,
    oscillating_gradients,
    pulsed_gradients,
)
from dipy_spinverse.packed_cells.equivalent_pulses import equivalent_pulses
from dipy_spinverse.packed_cells.maps import PARAMETERS, tissue_maps
from dipy_spinverse.packed_cells.orientations import even_legendre
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.packed_cells.waveform_correction import (
    two_compartment_signals,
    waveform_correction,
)

KINDS = (
    "cosine", "sine", "double, parallel", "double, antiparallel", "double, across", "linear",
    "planar", "spherical", "pulses",
)  # fmt: skip
_KINDS_OF_A_DRAW = 5
_SNR, _FREE_DIFFUSIVITY, _MOST_FREE = 50.0, 3.0, 0.2
_NAMES = ("radius", "fraction", "permeability")
_MAPS = (
    "surface_to_volume", "restricted_fraction", "wall_permeability", "exchange_time",
    "pore_diameter", "free_water_fraction", "diffusivity_inside", "diffusivity_outside",
)  # fmt: skip
_DRAWS, _VOXELS = (12, 6), (16, 8)  # cylinders, spheres
_DRAW_SEED, _VOXEL_SEED = 91, 73


def unit(vectors):
    """Vectors (..., 3) of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def encoding(kind: str, rng: np.random.Generator) -> WaveformAcquisition:
    """Four measurements of a kind: two b, two directions."""
    first, second = unit(rng.normal(size=(2, 4, 3)))
    b = between(rng.random(), 0.3, 1.2) * np.array([1, 1, 2.5, 2.5])
    if kind in ("cosine", "sine"):
        period = between(rng.random(), 5, 25)
        n = max(1, round(30 / period))
        return oscillating_gradients(b / 2, first, period, n, n * period + 6, shape=kind)
    if kind.startswith("double"):
        small, big = rng.uniform(2, 10), rng.uniform(12, 30)
        mixing = small + between(rng.random(), 1, 40)
        side = unit(np.cross(first, second))
        second = {"parallel": first, "antiparallel": -first, "across": side}[kind[8:]]
        return double_diffusion(b / 2, first, second, small, big, mixing)
    if kind == "pulses":
        small = rng.uniform(3, 15)
        return pulsed_gradients(b, first, small, small + rng.uniform(5, 40), ramp=1)
    axis = first[:, :, None] * first[:, None]
    tensor = {
        "linear": axis,
        "planar": (np.eye(3) - axis) / 2,
        "spherical": 0 * axis + np.eye(3) / 3,
    }
    return b_tensor_encoding(b[:, None, None] * tensor[kind], between(rng.random(), 25, 80))


def tissue_of(shape, u):
    """Radius, fraction, permeability, diffusivities inside and outside."""
    radii, densest = {"cylinder": ((0.6, 7), 0.72), "sphere": ((2, 10), 0.6)}[shape]
    outside = between(u[3], 0.5, 2.3)
    inside = outside * between(u[4], 0.6, 1.4)
    fraction, permeability = 0.1 + (densest - 0.1) * u[1], between(u[2], 5e-4, 0.3)
    return np.array([between(u[0], *radii), fraction, permeability, inside, outside])


def draw(shape: str, folder: Path, count: int, seed: int) -> None:
    """Simulate the samples that are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, u in enumerate(scattered(count, 5, seed)):
        path = folder / f"{shape}_{number:03d}.npz"
        if path.exists():
            continue
        began, rng = time.process_time(), np.random.default_rng([seed, number, shape == "sphere"])
        chosen = rng.permutation(len(KINDS))[:_KINDS_OF_A_DRAW]
        scan = concatenate(*(encoding(KINDS[k], rng) for k in chosen))
        tissue = tissue_of(shape, u)
        if shape == "sphere":
            tissue[1], signals = sphere_signals(tissue, scan, [seed, number])
        else:
            signals = cylinder_signals(tissue, np.eye(3), scan, rng)
        kinds = np.repeat(chosen, 4)
        np.savez(path, tissue=tissue, signals=signals, kinds=kinds, **scan.arrays())
        print(path.name, f"{time.process_time() - began:.1f} CPU-s", flush=True)


def protocol() -> WaveformAcquisition:
    """Linear, planar and spherical b-tensors, a cosine and parallel double diffusion: 81."""

    def scattered_unit(n):
        return unit(np.random.default_rng(n).normal(size=(n, 3)))

    linear, planar = scattered_unit(30), scattered_unit(12)
    b = np.repeat([0.7, 1.4, 2.5], 10)
    wide, flat, round_ = np.repeat([1.0, 2.0], 6), np.eye(3), np.repeat([0.7, 1.4, 2.0], 3)
    outer = linear[:, :, None] * linear[:, None]
    normal = planar[:, :, None] * planar[:, None]
    return concatenate(
        b_tensor_encoding(np.zeros((6, 3, 3)), 60, te=90),
        b_tensor_encoding(b[:, None, None] * outer, 60, te=90),
        b_tensor_encoding(wide[:, None, None] * (flat - normal) / 2, 60, te=90),
        b_tensor_encoding(round_[:, None, None] * np.eye(3) / 3, 60, te=90),
        oscillating_gradients(np.full(12, 0.7), scattered_unit(12), 18, 2, 44, te=90),
        double_diffusion(np.full(12, 0.7), *[scattered_unit(12)] * 2, 6, 18, 30, te=90),
    )


def simulate_voxels(shape: str, folder: Path, count: int, seed: int) -> None:
    """Voxels of parallel cylinders in any direction, or of spheres, under the protocol."""
    folder.mkdir(parents=True, exist_ok=True)
    scan = protocol()
    for number, u in enumerate(scattered(count, 5, seed)):
        path = folder / f"{shape}_{number:03d}.npz"
        if path.exists():
            continue
        began, rng = time.process_time(), np.random.default_rng([seed, number, shape == "sphere"])
        tissue, frame = tissue_of(shape, u), np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if shape == "sphere":
            tissue[1], signals = sphere_signals(tissue, scan, [seed, number])
        else:
            signals = cylinder_signals(tissue, frame, scan, rng)
        np.savez(path, tissue=tissue, signals=signals, frame=frame)
        print(path.name, f"{time.process_time() - began:.1f} CPU-s", flush=True)


def errors_of_draw(shape: str, path: Path) -> list[tuple]:
    """Kind, signal, and what predicts it, of all measurements.

    Two pools alone, the emulator for the pulses most alike, both, and the error that is assumed.
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    tissue, truth, kinds = (arrays.pop(name) for name in ("tissue", "signals", "kinds"))
    scan = equivalent_pulses(acquisition_from_arrays(arrays))
    known = float(tissue[3]), float(tissue[4])
    model = tissue_signals(scan, known, _FREE_DIFFUSIVITY, (shape,), interpolated=False)
    shells, order = model.shells, model.shells.order
    coordinates = np.log(tissue)[None]
    coordinates[0, 1] = tissue[1]
    coefficients = model.cells[shape](coordinates)[0, 0]
    prefix = "sphere_" if shape == "sphere" else ""
    values = {prefix + name: tissue[[k]] for k, name in enumerate(_NAMES)}
    values |= {"diffusivity_inside": tissue[[3]], "diffusivity_outside": tissue[[4]]}
    deviation = model.model_error(shape, values)[0]
    rows = []
    for m, shell in zip(order, shells.of_measurement, strict=True):
        cosine = scan.directions[m, 2]
        polynomials = even_legendre(np.abs(cosine), coefficients.shape[1])[0]
        found = coefficients[shell] @ polynomials
        spectrum, square = shells.spectra[shell], np.array([cosine**2])
        pulses, b = (shells.small_delta[shell], shells.big_delta[shell]), shells.b[[shell]]
        beyond = waveform_correction(shape, tissue[None], spectrum, pulses, b, square)[0, 0]
        free = np.array(spectrum.passing[0])
        alone = two_compartment_signals(
            shape, tissue[None], spectrum.at, free, spectrum.exchange_time, b, square
        )[0, 0]
        linear = shells.b_anisotropy[shell]
        along = b[0] * ((1 - linear) / 3 + linear * cosine**2) * (shape == "cylinder")
        expected = deviation[shell] * np.exp(-tissue[3] * along)
        each = np.array([alone, found - beyond, found]) - truth[m]
        rows.append((KINDS[kinds[m]], *each, expected))
    return rows


def error_table(shape: str, folder: Path) -> str:
    """By kind of waveform."""
    paths = sorted(folder.glob(f"{shape}_*.npz"))
    rows = [row for path in paths for row in errors_of_draw(shape, path)]
    kinds = np.array([row[0] for row in rows])
    numbers = np.array([row[1:] for row in rows])
    lines = []
    for kind in ("all", *KINDS):
        own = numbers[(kinds == kind) | (kind == "all")]
        if len(own):
            rms = 100 * np.sqrt((own**2).mean(axis=0))
            within = np.mean(np.abs(own[:, 2]) < 2 * own[:, 3] + 0.002)
            tail = 100 * np.quantile(np.abs(own[:, 2]), 0.95)
            lines.append((kind, len(own), *(f"{x:.2f}" for x in rms[:3]), f"{tail:.2f}",
                          f"{rms[3]:.2f}", f"{within:.0%}"))  # fmt: skip
    head = (shape, "signals", "two pools", "pulses most alike", "both", "95th percentile",
            "assumed", "within 2 of these")  # fmt: skip
    return f"{len(paths)} packings.\n\n" + table(head, lines)


def true_maps(shape: str, tissue: np.ndarray, free: float) -> dict[str, float]:
    """Of a voxel."""
    values = {name: np.zeros(1) for name in PARAMETERS}
    prefix = "sphere_" if shape == "sphere" else ""
    values |= {prefix + name: tissue[[k]] for k, name in enumerate(_NAMES)}
    values |= {"diffusivity_inside": tissue[[3]], "diffusivity_outside": tissue[[4]]}
    values |= {
        "free_water": np.array([free]),
        "sphere_share": np.array([shape == "sphere"], float),
    }
    maps = tissue_maps(values, np.eye(3)[None])
    return {name: float(maps[name][0]) for name in _MAPS}


def interval_tables(folder: Path) -> str:
    """Coverage and width of intervals, and cost per voxel."""
    scan, rng = protocol(), np.random.default_rng(5)
    shapes, truths, signals = [], [], []
    for path in sorted(folder.glob("*.npz")):
        shape = path.name.split("_")[0]
        free = _MOST_FREE * rng.random()
        with np.load(path) as file:
            tissue, cells = file["tissue"], file["signals"]
        clean = (1 - free) * cells + free * np.exp(-_FREE_DIFFUSIVITY * scan.b)
        noise = rng.standard_normal((2, len(scan))) / _SNR
        signals.append(np.hypot(clean + noise[0], noise[1]))
        shapes.append(shape)
        truths.append(true_maps(shape, tissue, free))
    model, data = PackedCellsModel(scan), np.array(signals)
    began = time.process_time()
    model.fit(data[:1], sigma=1 / _SNR)
    first = time.process_time() - began
    began = time.process_time()
    fit = model.fit(data, sigma=1 / _SNR)
    spent = (time.process_time() - began) / len(data)
    explained, shapes = fit.status == Status.CONVERGED, np.array(shapes)
    lines = []
    for name in _MAPS:
        truth = np.array([each[name] for each in truths])
        low, high, median = (getattr(fit, name + end) for end in ("_low", "_high", ""))
        held = (low <= truth) & (truth <= high)
        rank = np.corrcoef(*(np.argsort(np.argsort(x)) for x in (truth, median)))[0, 1]
        lines.append((
            name, *(f"{held[shapes == shape].sum()} of {(shapes == shape).sum()}"
                    for shape in ("cylinder", "sphere")),
            f"{held[explained].mean():.0%}", f"{np.median(high / np.maximum(low, 1e-9)):.3g}",
            f"{rank:.2f}",
        ))  # fmt: skip
    named = sum(
        found == {"cylinder": "cylinders", "sphere": "spheres"}[shape]
        for found, shape in zip(fit.tissue_class, shapes, strict=True)
    )
    head = ("map", "cylinders covered", "spheres covered", "coverage where explained",
            "median of high / low", "rank correlation")  # fmt: skip
    return (
        f"{len(data)} voxels, {len(scan)} measurements, SNR {_SNR:.0f}, diffusivities unknown; "
        f"{explained.sum()} are explained, {named} assigned to the true class. First voxel "
        f"{first:.1f} CPU-s (it compiles), then {1e3 * spent:.0f} CPU-ms per voxel.\n\n"
        + table(head, lines)
    )


def main() -> None:
    """Command line."""
    parser = command(__doc__, "some of each")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    for shape, n_draws, n_voxels in zip(("cylinder", "sphere"), _DRAWS, _VOXELS, strict=True):
        quick = 2 if given.quick else max(n_draws, n_voxels)
        draw(shape, given.folder / "draws", min(n_draws, quick), _DRAW_SEED)
        simulate_voxels(shape, given.folder / "voxels", min(n_voxels, quick), _VOXEL_SEED)
    text = "\n\n".join([
        "# Packed cells under free waveforms",
        "python -m benchmarks.waveform_tissue FOLDER",
        "## Errors of signals\n\nRoot mean square, % of S0. *Two pools*: the closed form alone, "
        "phases normal inside, with exchange. *Pulses most alike*: the emulator for pulses of the "
        "same b-tensor whose spectrum is most similar. *Both*: these and the difference in the "
        "closed form between waveform and pulses, as in fits. *Assumed*: the standard deviation "
        "in the likelihood.",
        error_table("cylinder", given.folder / "draws"),
        error_table("sphere", given.folder / "draws"),
        "## Intervals",
        interval_tables(given.folder / "voxels"),
        machine(),
    ])  # fmt: skip
    print(text)
    keep("waveform_tissue.md", text, complete=not given.quick)


if __name__ == "__main__":
    main()
