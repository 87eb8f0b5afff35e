"""Training of the emulator of packed cells: simulated samples, then the networks fitted to them.

    python -m benchmarks.make_emulator draw cylinder FOLDER --count 1500
    python -m benchmarks.make_emulator draw cylinder_tight FOLDER --count 300
    python -m benchmarks.make_emulator draw sphere FOLDER --count 950
    python -m benchmarks.make_emulator fit FOLDER

Sampling resumes after an interruption; all is seeded by the number of the sample.
Cylinders are simulated by `benchmarks.periodic_cylinders`, spheres on the lattice of the package
at two resolutions. An eighth of the samples is held out, for the errors of the networks.

Duration: 0.35 (cylinders), 0.65 (dense, nearly impermeable ones) and 1.5 CPU-s (spheres) per
sample; fitting 2.5 CPU-min. Writes FOLDER, and dipy_spinverse/packed_cells/emulator/networks.npz.
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
    pulse_signals,
    random_mesh,
    reduced,
)
from dipy_spinverse.packed_cells.emulator.closed_form import (
    OFFSET,
    ClosedForm,
    Numbers,
    closed_form,
)
from dipy_spinverse.packed_cells.emulator.signals import NetworkEnsemble, error_terms

NETWORKS = Path(__file__).parent.parent / "dipy_spinverse/packed_cells/emulator/networks.npz"
_N_TIMINGS = 8
# Four retain up to 3 % of S0 less where dense and nearly impermeable; 32 give the same.
_N_CYLINDERS, _N_TIGHT, _N_SPARSE, _SPARSE = 12, 24, 6, 0.25
_COARSER, _SMOOTH = 0.7, 1.6  # of meshes, below this q R: 0.04 % of S0, for half the time
_N_Q = 8  # of a sphere sample
_PART = 50  # samples per file
_WIDTH, _N_NETWORKS = 64, 3
_RATE, _DECAY, _BATCH, _FIRST_SCATTER = 3e-3, 0.01, 1024, 0.004
# Errors beyond this multiple of the scatter have less weight; scatter, of S0.
_STRAYING, _LEAST_SCATTER, _SPHERE_SCATTER = 3.0, 1e-3, 0.004 / 3
_DECAYED = 7.0
FIRST_TIGHT = 100_000  # number of the first dense, nearly impermeable sample


def scattered(n: int, n_axes: int, seed: int = 7) -> np.ndarray:
    """Points (n, n_axes) that fill the unit cube evenly, the same for any larger n."""
    return qmc.Sobol(n_axes, seed=seed).random(2 ** int(np.ceil(np.log2(max(n, 2)))))[:n]


def between(u, low, high):
    """Logarithmically uniform."""
    return low * (high / low) ** u


def cylinder_draw(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of `cylinder_rows` of one tissue of the range."""
    fraction = 0.05 + 0.75 * u[0] ** 0.8
    permeability = 0.0 if u[1] < 0.08 else between((u[1] - 0.08) / 0.92, 1e-4, 20)
    inside = 1.0 if u[2] < 0.2 else between((u[2] - 0.2) / 0.8, 0.2, 2.5)
    time_0 = between(u[3], 0.008, 500)
    q_max = min(np.sqrt(between(u[4], 1, 100) / time_0), 9)
    n = _N_CYLINDERS if fraction > _SPARSE else _N_SPARSE
    return cylinder_rows(fraction, permeability, inside, time_0, q_max, n, rng)


def tight_draw(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of `cylinder_rows` of a dense, nearly impermeable tissue: packings differ most."""
    fraction = 0.55 + 0.25 * u[0]
    permeability = 0.0 if u[1] < 0.3 else between((u[1] - 0.3) / 0.7, 1e-4, 0.1)
    inside = 1.0 if u[2] < 0.2 else between((u[2] - 0.2) / 0.8, 0.2, 2.5)
    time_0 = between(u[3], 0.5, 100)
    q_max = min(np.sqrt(between(u[4], 1, 30) / time_0), 4)
    return cylinder_rows(fraction, permeability, inside, time_0, q_max, _N_TIGHT, rng)


def cylinder_rows(
    fraction: float,
    permeability: float,
    inside: float,
    time_0: float,
    q_max: float,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows (K, 8) of one packing of n cylinders under several timings and q of one direction.

    Fraction, kappa R / D, D inside over D, D Delta / R^2, delta / Delta, q R, the cosine between
    gradient and cylinders, and the signal.
    """
    mesh = random_mesh(n, fraction, rng, _COARSER if q_max < _SMOOTH else 1)
    big = time_0 * 2 ** rng.uniform(-1, 1, _N_TIMINGS)
    pulse = rng.uniform(0.01, 0.95, _N_TIMINGS)
    cosine, angle = 0.0 if rng.random() < 0.3 else rng.random(), rng.uniform(0, 2 * np.pi)
    sine = np.sqrt(1 - cosine**2)
    direction = np.array([sine * np.cos(angle), sine * np.sin(angle), cosine])
    small = reduced(matrices_of(mesh), permeability, inside, direction, q_max, time_0)
    q, signals = pulse_signals(small, q_max, pulse * big, big)
    each = np.broadcast_arrays(
        fraction, permeability, inside, big, pulse, q[:, None], cosine, signals
    )
    return np.stack([part.ravel() for part in each], axis=1)


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


SHAPES = ("cylinder", "sphere")
# Sampling function, number of dimensions of positions, and number of the first.
DRAWS = {
    "cylinder": (cylinder_draw, 5, 0),
    "cylinder_tight": (tight_draw, 5, FIRST_TIGHT),
    "sphere": (sphere_draw, 6, 0),
}


def draw(shape: str, folder: Path, count: int) -> None:
    """Simulate the samples that are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    one, n_axes, before = DRAWS[shape]
    places = scattered(count, n_axes)
    for start in range(0, count, _PART):
        path = folder / f"{shape}_{start:05d}.npy"
        if path.exists():
            continue
        began, rows = time.process_time(), []
        for number in range(start, min(start + _PART, count)):
            found = one(places[number], np.random.default_rng([3, before + number]))
            rows.append(np.column_stack([np.full(len(found), before + number), found]))
        np.save(path, np.concatenate(rows).astype(np.float32))
        spent = (time.process_time() - began) / len(rows)
        print(f"{path.name}: {spent:.2f} CPU-s per sample", flush=True)


def read_draws(shape: str, folder: Path) -> tuple[np.ndarray, Numbers, np.ndarray]:
    """Number of the sample, dimensionless numbers and signals of all rows."""
    rows = np.concatenate([np.load(path) for path in sorted(folder.glob(f"{shape}_*.npy"))])
    draw_, fraction, permeability, inside, big, pulse, q, cosine, signal, *lattice = rows.T.astype(
        float
    )
    if lattice:
        # Above, gaps close on the coarser lattice: the change is not informative about the limit.
        signal = signal + np.where(fraction < LOOSE_FRACTION, lattice[0], 0)
    sine = np.sqrt(1 - cosine**2)
    numbers = Numbers(fraction, permeability, inside, big, pulse, q * sine, q * cosine)
    return draw_.astype(int), numbers, signal


def held_out(draws: np.ndarray) -> np.ndarray:
    """Rows that no network is fitted to."""
    # Drawn, not counted: every eighth point of a Sobol sequence lies in one corner.
    return np.random.default_rng(1).random(draws.max() + 1)[draws] < 1 / 8


def fit(shape: str, folder: Path, steps: int) -> dict[str, np.ndarray]:
    """Stored arrays of the networks of a shape, which are averaged, and of their error."""
    draws, numbers, signal = read_draws(shape, folder)
    held = held_out(draws)
    form, terms = closed_form(shape, numbers), error_terms(numbers)
    # Rows where all water has decayed along the cylinders are not informative.
    seen = np.flatnonzero(~held & (form.attenuation < _DECAYED))
    scatter = np.full(len(signal), _SPHERE_SCATTER)
    if shape == "cylinder":
        # Packings differ by 0.1 % of S0 where sparse and by 3 % where dense and nearly
        # impermeable; where the signal has decayed, they do not differ.
        first = fit_network(
            form, signal, seen, np.full(len(signal), _FIRST_SCATTER), steps // 4, 0
        )
        errors = form.signals(evaluated([first], form.inputs)) - signal
        left = np.exp(-form.attenuation) * (form.two_compartments + OFFSET) * form.gain
        scale = likeliest_error(errors[seen], left[seen], terms[seen])
        scatter = left * np.exp(terms @ scale) + _LEAST_SCATTER
    networks = [
        fit_network(form, signal, seen, scatter, steps, seed) for seed in range(1, 1 + _N_NETWORKS)
    ]
    errors = (form.signals(evaluated(networks, form.inputs)) - signal)[held]
    size = np.sqrt((errors**2).mean()), np.quantile(np.abs(errors), 0.95)
    print(shape, "left out: rms {:.2%}, 95th percentile {:.2%}".format(*size), flush=True)
    arrays = {f"{shape}_layers": np.array(len(networks[0]))}
    for k, layers in enumerate(zip(*networks, strict=True)):
        weight, bias = (np.stack(part).astype(np.float32) for part in zip(*layers, strict=True))
        arrays[f"{shape}_weight_{k}"], arrays[f"{shape}_bias_{k}"] = weight, bias[:, None]
    arrays[f"{shape}_error"] = likeliest_error(errors, form.gain[held], terms[held])
    return arrays


def fit_network(
    form: ClosedForm,
    signal: np.ndarray,
    seen: np.ndarray,
    scatter: np.ndarray,
    steps: int,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of the layers, fitted to the seen rows with their scatter."""
    centre, size = form.inputs[seen].mean(axis=0), form.inputs[seen].std(axis=0) + 1e-6
    as_tensor = partial(torch.tensor, dtype=torch.float32)
    inputs = as_tensor((form.inputs - centre) / size)
    pools, gain, shared, target, scale = map(
        as_tensor, (form.two_compartments, form.gain, np.exp(-form.attenuation), signal, scatter)
    )
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(inputs.shape[1], _WIDTH), torch.nn.SiLU()]
    layers += [torch.nn.Linear(_WIDTH, _WIDTH), torch.nn.SiLU(), torch.nn.Linear(_WIDTH, 1)]
    network = torch.nn.Sequential(*layers)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _RATE, total_steps=steps, pct_start=0.1
    )
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(seen, _BATCH))
        output = network(inputs[rows])[:, 0].clamp(-4, 4)
        bracket = (pools[rows] + OFFSET) * torch.exp(gain[rows] * output) - OFFSET
        errors = (shared[rows] * bracket - target[rows]) / scale[rows]
        loss = (torch.sqrt(1 + (errors / _STRAYING) ** 2) - 1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    found = [
        (layer.weight.detach().numpy().T.astype(float), layer.bias.detach().numpy().astype(float))
        for layer in network
        if isinstance(layer, torch.nn.Linear)
    ]
    weight, bias = found[0][0] / size[:, None], found[0][1]
    return [(weight, bias - centre @ weight), *found[1:]]


def evaluated(networks: list, inputs: np.ndarray) -> np.ndarray:
    """Mean output (n,) of networks."""
    layers = [
        [np.stack(part).astype(np.float32) for part in zip(*layer, strict=True)]
        for layer in zip(*networks, strict=True)
    ]
    weights, biases = zip(*layers, strict=True)
    network = NetworkEnsemble(weights, tuple(bias[:, None] for bias in biases), np.empty(0))
    parts = [network(rows) for rows in np.array_split(inputs, len(inputs) // 4096 + 1)]
    return np.concatenate(parts)


def likeliest_error(left, gain, terms):
    """Maximum-likelihood c of normal errors with standard deviations gain exp(terms @ c)."""

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
    fitting.add_argument("--steps", type=int, default=7000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if given.step == "draw":
        draw(given.shape, given.folder, given.count)
    else:
        arrays = [fit(shape, given.folder, given.steps) for shape in SHAPES]
        np.savez_compressed(NETWORKS, **arrays[0], **arrays[1])


if __name__ == "__main__":
    main()
