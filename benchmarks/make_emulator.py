"""Makes the emulator of packed cells: simulated draws, then the networks fitted to them.

    python -m benchmarks.make_emulator draw cylinder FOLDER --count 2048
    python -m benchmarks.make_emulator draw sphere FOLDER --count 1024
    python -m benchmarks.make_emulator fit FOLDER

Drawing goes on where an interrupted run stopped; all is seeded by the number of the draw.
Cylinders are simulated by `benchmarks.periodic_cylinders`, spheres on the lattice of the package
at two resolutions. An eighth of the draws is kept from the networks, for their errors.

Duration: 0.8 (cylinders) and 1.5 CPU-s (spheres) per draw; fitting 10 CPU-min. Writes FOLDER, and
dipy_spinverse/packed_cells/emulator/networks.npz.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import qmc

from benchmarks.lattice_spheres import LOOSE_FRACTION, lattice_signals
from benchmarks.periodic_cylinders import (
    matrices_of,
    modes_of,
    pulse_signals,
    random_mesh,
)
from dipy_spinverse.packed_cells.emulator.closed_form import OFFSET, Numbers, closed_form
from dipy_spinverse.packed_cells.emulator.signals import error_terms

NETWORKS = Path(__file__).parent.parent / "dipy_spinverse/packed_cells/emulator/networks.npz"
_N_TIMINGS = 8
_MOST_MODES = 90
_N_Q = 8  # of a sphere draw
_PART = 50  # draws per file
_RATE, _DECAY, _BATCH, _HUBER = 3e-3, 0.01, 2048, 0.004
_DECAYED = 7.0


def scattered(n: int, n_axes: int, seed: int = 7) -> np.ndarray:
    """Points (n, n_axes) that fill the unit cube evenly, the same for any larger n."""
    return qmc.Sobol(n_axes, seed=seed).random(2 ** int(np.ceil(np.log2(max(n, 2)))))[:n]


def between(u, low, high):
    """Logarithmically uniform."""
    return low * (high / low) ** u


def cylinder_draw(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (n, 8) of one tissue under several timings, q and directions.

    Fraction, kappa R / D, D inside over D, D Delta / R^2, delta / Delta, q R, the cosine between
    gradient and cylinders, and the signal.
    """
    fraction = 0.05 + 0.75 * u[0] ** 0.8
    permeability = 0.0 if u[1] < 0.08 else between((u[1] - 0.08) / 0.92, 1e-4, 20)
    inside = 1.0 if u[2] < 0.2 else between((u[2] - 0.2) / 0.8, 0.2, 2.5)
    time_0 = between(u[3], 0.008, 500)
    q_max = min(np.sqrt(between(u[4], 1, 100) / time_0), 9)
    scale = max(1.2 * q_max + 3.5, min(1.2 / np.sqrt(time_0), 9))
    for n in (16, 12, 8, 6, 4, 2, 1):
        n_modes = int(1.15 * n * np.pi / fraction * scale**2 / (4 * np.pi)) + 12
        if n_modes <= _MOST_MODES or n == (2 if fraction > 0.6 else 1):
            break
    n_modes = min(n_modes, _MOST_MODES)
    mesh = random_mesh(n, fraction, rng)
    modes = modes_of(matrices_of(mesh), permeability, inside, n_modes, n_modes)
    big = time_0 * 2 ** rng.uniform(-1, 1, _N_TIMINGS)
    pulse = rng.uniform(0.01, 0.95, _N_TIMINGS)
    rows = []
    for cosine in (0.0 if rng.random() < 0.5 else rng.random(), rng.random() ** 1.5):
        angle = rng.uniform(0, 2 * np.pi)
        sine = np.sqrt(1 - cosine**2)
        direction = np.array([sine * np.cos(angle), sine * np.sin(angle), cosine])
        q, signals = pulse_signals(modes, direction, q_max, pulse * big, big)
        each = np.broadcast_arrays(
            fraction, permeability, inside, big, pulse, q[:, None], cosine, signals
        )
        rows.append(np.stack([part.ravel() for part in each], axis=1))
    return np.concatenate(rows)


def sphere_draw(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (n, 9) as of `cylinder_draw`, of one timing; last what a finer lattice would add."""
    fraction = 0.05 + 0.61 * u[0] ** 0.8
    permeability = 0.0 if u[1] < 0.08 else between((u[1] - 0.08) / 0.92, 1e-4, 20)
    inside = 1.0 if u[2] < 0.2 else between((u[2] - 0.2) / 0.8, 0.2, 2.5)
    big = between(u[3], 0.03, 100)
    pulse = 0.01 + 0.94 * u[5]
    q_max = min(np.sqrt(between(u[4], 1, 30) / big), 6)
    q = q_max * np.linspace(0.25, 1, _N_Q)
    seed = rng.integers(2**32, size=2).tolist()
    fraction, signals, lattice = lattice_signals(
        fraction, permeability, inside, q, pulse * big, big, seed
    )
    each = np.broadcast_arrays(
        fraction, permeability, inside, big, pulse, q, 0.0, signals, lattice
    )
    return np.stack(each, axis=1)


DRAWS = {"cylinder": (cylinder_draw, 5), "sphere": (sphere_draw, 6)}


def draw(shape: str, folder: Path, count: int) -> None:
    """Simulate the draws that are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    one, n_axes = DRAWS[shape]
    places = scattered(count, n_axes)
    for start in range(0, count, _PART):
        path = folder / f"{shape}_{start:05d}.npy"
        if path.exists():
            continue
        began, rows = time.process_time(), []
        for number in range(start, min(start + _PART, count)):
            found = one(places[number], np.random.default_rng([3, number]))
            rows.append(np.column_stack([np.full(len(found), number), found]))
        np.save(path, np.concatenate(rows).astype(np.float32))
        spent = (time.process_time() - began) / len(rows)
        print(f"{path.name}: {spent:.2f} CPU-s per draw", flush=True)


def read_draws(shape: str, folder: Path) -> tuple[np.ndarray, Numbers, np.ndarray]:
    """Number of the draw, dimensionless numbers and signals of all rows."""
    rows = np.concatenate([np.load(path) for path in sorted(folder.glob(f"{shape}_*.npy"))])
    draw_, fraction, permeability, inside, big, pulse, q, cosine, signal, *lattice = rows.T.astype(
        float
    )
    if lattice:
        # Above, gaps close on the coarser lattice: the change says nothing about the limit.
        signal = signal + np.where(fraction < LOOSE_FRACTION, lattice[0], 0)
    sine = np.sqrt(1 - cosine**2)
    numbers = Numbers(fraction, permeability, inside, big, pulse, q * sine, q * cosine)
    return draw_.astype(int), numbers, signal


def held_out(draws: np.ndarray) -> np.ndarray:
    """Rows that no network is fitted to."""
    # Drawn, not counted: every eighth point of a Sobol sequence lies in one corner.
    return np.random.default_rng(1).random(draws.max() + 1)[draws] < 1 / 8


def fit(shape: str, folder: Path, steps: int, width: int = 64) -> dict[str, np.ndarray]:
    """Arrays of one network and of its error, as they are kept."""
    draws, numbers, signal = read_draws(shape, folder)
    held = held_out(draws)
    form = closed_form(shape, numbers)
    centre, size = form.inputs[~held].mean(axis=0), form.inputs[~held].std(axis=0) + 1e-6
    as_tensor = partial(torch.tensor, dtype=torch.float32)
    inputs = as_tensor((form.inputs - centre) / size)
    pools, gain, shared, target = map(
        as_tensor, (form.pools, form.gain, np.exp(-form.attenuation), signal)
    )
    torch.manual_seed(0)
    layers = [torch.nn.Linear(inputs.shape[1], width), torch.nn.SiLU()]
    layers += [torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, 1)]
    network = torch.nn.Sequential(*layers)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-6)

    def errors(rows):
        output = network(inputs[rows])[:, 0].clamp(-4, 4)
        bracket = (pools[rows] + OFFSET) * torch.exp(gain[rows] * output) - OFFSET
        return shared[rows] * bracket - target[rows]

    # Where all water has decayed along the cylinders, there is nothing to learn.
    seen = np.flatnonzero(~held & (form.attenuation < _DECAYED))
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = torch.from_numpy(rng.choice(seen, _BATCH))
        loss = (torch.sqrt(1 + (errors(rows) / _HUBER) ** 2) - 1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % (steps // 8) == 0:
            with torch.no_grad():
                left = errors(torch.from_numpy(np.flatnonzero(held)))
            print(
                f"{shape} {step}: {1e2 * left.square().mean().sqrt():.3f} % left out", flush=True
            )
    with torch.no_grad():
        left = errors(torch.from_numpy(np.flatnonzero(held))).numpy()
    size_of_left = np.sqrt((left**2).mean()), np.quantile(np.abs(left), 0.95)
    print(shape, "left out: rms {:.2%}, 95th percentile {:.2%}".format(*size_of_left), flush=True)
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    arrays = {f"{shape}_layers": np.array(len(linear))}
    for k, layer in enumerate(linear):
        weight, bias = layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()
        if k == 0:
            bias = bias - (centre / size) @ weight
            weight = weight / size[:, None]
        arrays[f"{shape}_weight_{k}"] = weight.astype(np.float32)
        arrays[f"{shape}_bias_{k}"] = bias.astype(np.float32)
    chosen = Numbers(*(number[held] for number in numbers))
    arrays[f"{shape}_error"] = _likeliest_error(left, form.gain[held], error_terms(chosen))
    return arrays


def _likeliest_error(left, gain, terms):
    """Coefficients with which normal errors of sd gain exp(terms @ c) are likeliest."""

    def cost(c):
        log_sd = terms @ c + np.log(gain + 1e-3)
        return (log_sd + 0.5 * (left**2 + 1e-8) * np.exp(-2 * log_sd)).mean()

    return minimize(cost, np.r_[-5.0, np.zeros(terms.shape[1] - 1)], method="BFGS").x


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    drawing = steps.add_parser("draw", help="simulate")
    drawing.add_argument("shape", choices=list(DRAWS))
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--count", type=int, required=True)
    fitting = steps.add_parser("fit", help="fit the networks")
    fitting.add_argument("folder", type=Path)
    fitting.add_argument("--steps", type=int, default=20000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if given.step == "draw":
        draw(given.shape, given.folder, given.count)
    else:
        arrays = [fit(shape, given.folder, given.steps) for shape in DRAWS]
        np.savez_compressed(NETWORKS, **arrays[0], **arrays[1])


if __name__ == "__main__":
    main()
