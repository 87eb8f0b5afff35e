"""Exchange between neurites and their surroundings (NEXI, SMEX): signals, fits, and a peer's.

Signals against the package's solution of the Bloch-Torrey equation: thin layers with different
diffusivities and permeable walls between, gradient along them, are two well-mixed sites where the
walls, not the layers, slow the exchange. The average over directions is taken of these solutions.

Fits compared with graymatter_swissknife in the same run, on the same powder averages: signals of a
general solver of differential equations, noise of 0.5 % of S0. NEXI with short pulses, SMEX with
finite ones, both with the narrower of the bounds of both.

    python -m benchmarks.neurite_exchange [--peers FOLDER]

Coverage for truths from the prior is in `benchmarks.ready_made_intervals`.

Duration: about 8 CPU-min, nearly all of it the peer's (--quick, without it: 30 s). Writes
results/neurite_exchange.md.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks.command import command, keep
from benchmarks.peers import FOLDER, peer_result
from benchmarks.tables import table
from dipy_spinverse import Acquisition, NEXIModel
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.grid import bcc_grid

MAPS = ("exchange_time", "neurite_diffusivity", "extra_diffusivity", "neurite_fraction")
# In the order of MAPS: ms, um^2/ms, um^2/ms, 1.
BOUNDS = np.array([[1, 150], [0.5, 3.5], [0.1, 2.0], [0.1, 0.9]])
NOISE = 0.005
_B = (1.0, 2.0, 3.5, 5.0, 7.0)
_BIG_DELTA = (16.0, 25.0, 35.0, 45.0)
_TE = 80.0
_SHORT = 0.01  # ms: pulses of NEXI
_CUBES = 4


def averages(b, small_delta: float, big_delta) -> Acquisition:
    """Averages over directions at each diffusion time."""
    n_times = len(big_delta)
    return Acquisition(
        np.tile(b, n_times), np.zeros((n_times * len(b), 3)), small_delta=small_delta,
        big_delta=np.repeat(big_delta, len(b)), te=_TE, isotropic=True,
    )  # fmt: skip


def layers(acquisition: Acquisition, truth: dict[str, float], thickness: float) -> np.ndarray:
    """Powder averages (M,) of the Bloch-Torrey solution of layers of this thickness, um.

    Exchange time and fraction follow from permeability kappa, thickness L and spin densities:
    1 / exchange time = 4 kappa / L.
    """
    grid = bcc_grid([_CUBES, _CUBES, 3], thickness * 2 * np.sqrt(2) / _CUBES)
    second = (grid.centroids @ [1, 1, 0] / np.sqrt(2)) % (2 * thickness) > thickness
    walls = second[grid.face_tetrahedra[:, 0]] != second[grid.face_tetrahedra[:, 1]]
    kappa = np.where(walls, thickness / (4 * truth["exchange_time"]), np.inf)
    inside, outside = truth["neurite_diffusivity"], truth["extra_diffusivity"]
    fraction = truth["neurite_fraction"]
    along = np.tile([0.0, 0.0, 1.0], (len(acquisition), 1))
    times = {"small_delta": acquisition.small_delta, "big_delta": acquisition.big_delta}
    directed = Acquisition(acquisition.b, along, te=_TE, **times)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = np.zeros(len(acquisition))
    for cosine, weight in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):
        total += weight * simulate(
            directed, grid, kappa,
            diffusivity=np.where(second, outside, inside * cosine**2),
            initial_density=np.where(second, 1 - fraction, fraction),
        )  # fmt: skip
    return total


def by_steps(acquisition: Acquisition, truth: dict[str, float]) -> np.ndarray:
    """Powder averages (M,) of two sites by a general solver of differential equations."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    square = (0.5 * (nodes + 1)) ** 2
    rate, fraction = 1 / truth["exchange_time"], truth["neurite_fraction"]
    inside, outside = truth["neurite_diffusivity"] * square, truth["extra_diffusivity"]
    result = np.empty(len(acquisition))
    for big in np.unique(acquisition.big_delta):
        rows = np.flatnonzero(acquisition.big_delta == big)
        small, q = acquisition.small_delta[rows[0]], acquisition.q[rows, None]

        def slope(t, m, q=q, small=small, big=big):
            first, second = m.reshape(2, len(q), -1)
            square = (q * np.interp(t, [0, small, big, big + small], [0, 1, 1, 0])) ** 2
            flow = rate * ((1 - fraction) * first - fraction * second)
            rest = -square * outside * second + flow
            return np.concatenate([-square * inside * first - flow, rest]).ravel()

        state = np.repeat([fraction, 1 - fraction], len(rows) * len(nodes))
        for ends in ((0, small), (small, big), (big, big + small)):
            state = solve_ivp(slope, ends, state, "DOP853", rtol=1e-8, atol=1e-10).y[:, -1]
        result[rows] = state.reshape(2, len(rows), -1).sum(axis=0) @ (0.5 * weights)
    return result


def against_layers() -> str:
    """Largest difference of signals to those of layers, % of S0."""
    rows = []
    for small in (2.0, 9.0):
        acquisition = averages(_B, small, (16.0, 45.0))
        model = NEXIModel(acquisition)
        for time_ms in (6.0, 20.0, 60.0):
            truth = dict(zip(MAPS, (time_ms, 2.4, 0.8, 0.35), strict=True))
            own = model.signals(truth)
            off = [100 * np.abs(layers(acquisition, truth, thickness) - own).max()
                   for thickness in (0.4, 0.2, 0.1)]  # fmt: skip
            rows.append([small, time_ms, *(f"{each:.3f}" for each in off)])
            print(rows[-1], flush=True)
    return table(["pulses, ms", "exchange time, ms", "layers of 0.4 um", "0.2 um", "0.1 um"], rows)


def beside_peer(
    word: str, small_delta: float, n: int, peers: Path | None
) -> tuple[list[list[str]], str]:
    """Errors and cost of both, and how exact the model's signals are."""
    acquisition = averages((0.0, *_B), small_delta, _BIG_DELTA)
    rng = np.random.default_rng(0)
    low, high = np.array([[5, 1.5, 0.4, 0.2], [60, 3.0, 1.2, 0.7]])
    truth = rng.uniform(low, high, (n, 4))
    clean = [by_steps(acquisition, dict(zip(MAPS, each, strict=True))) for each in truth]
    model = NEXIModel(acquisition)
    off = np.abs(model.signals(dict(zip(MAPS, truth.T, strict=True))) - clean).max()
    data = clean + NOISE * rng.standard_normal(np.shape(clean))
    scales, rows, costs = np.array([1, 1e3, 1e3, 1]), [], []

    def row(name, estimate, cost):
        error = np.abs(estimate - truth).mean(axis=0)
        rows.append([word, name, *(f"{each:.3f}" for each in error), f"{1e3 * cost / n:.2f}"])
        print(rows[-1], flush=True)
        costs.append(cost)

    model.fit(data[:2])
    for name, end, n_draws in (
        ("maximum likelihood", "_likeliest", 0),
        ("median, intervals", "", 256),
    ):
        started = time.process_time()
        fit = model.fit(data, sigma=NOISE, n_draws=n_draws)
        cost = time.process_time() - started
        estimate = np.stack([getattr(fit, m + end) for m in MAPS], axis=1) * scales
        row(f"dipy_spinverse, {name}", estimate, cost)
    weighted = acquisition.b > 0
    without = data[:, ~weighted].mean(axis=1, keepdims=True)
    found = peer_result(
        peers, "swissknife", "swissknife_exchange", model=word, bounds=BOUNDS,
        signals=data[:, weighted] / without, b=acquisition.b[weighted],
        big_delta=acquisition.big_delta[weighted], small_delta=small_delta,
    )  # fmt: skip
    note = f"{word}: {n} voxels; signals differ by at most {off:.0e} of S0 from the solver's"
    if found is not None:
        row("graymatter_swissknife", found["found"], float(found["cpu"]))
        note += (
            f"; the peer takes {costs[2] / costs[0]:.0f} times as long as maximum likelihood, "
            f"{costs[2] / costs[1]:.0f} times as long as the fit with intervals, and "
            f"{float(found['once']):.0f} CPU-s once for its grid of initial values"
        )
    held = [(getattr(fit, f"{m}_low") * s <= t) & (t <= getattr(fit, f"{m}_high") * s)
            for m, s, t in zip(MAPS, scales, truth.T, strict=True)]  # fmt: skip
    shares = ", ".join(f"{100 * each.mean():.0f}" for each in held)
    return rows, f"{note}. Intervals cover {shares} % in the order of the columns."


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "a few voxels without the peer")
    parser.add_argument("--peers", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The acquisition hardly determines")
    peers = None if options.quick else options.peers
    signals, rows, notes = against_layers(), [], []
    for word, small, n, few in (("NEXI", _SHORT, 60, 10), ("SMEX", 9.0, 16, 5)):
        more, note = beside_peer(word, small, few if options.quick else n, peers)
        rows += more
        notes.append(note)
    heads = ["", "mean absolute error:", "exchange time, ms", "neurite D, um2/ms",
             "extra D, um2/ms", "fraction", "CPU ms per voxel"]  # fmt: skip
    text = (
        "# Exchange between neurites and their surroundings\n\n`python -m "
        f"benchmarks.neurite_exchange`\n\n{against_layers.__doc__}\n\n{signals}\n\n"
        f"Fits of 20 powder averages and 4 b0, noise {NOISE:g} of S0:\n\n{table(heads, rows)}\n\n"
        + "\n\n".join(notes)
    )
    print(text)
    keep("neurite_exchange.md", text, complete=not options.quick)


if __name__ == "__main__":
    main()
