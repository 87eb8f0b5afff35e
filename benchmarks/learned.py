"""Learning instead of fitting: errors, cost and coverage of the learners of NODDI.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.learned [--methods ridge deep ...]

Duration: about 4 min on 2 cores (--quick: 1 min). Writes results/learned.md.

Each learner is trained on simulations and evaluated on the 200 voxels of noddi200 (Rician, SNR 30,
parameters of white and grey matter), with the fit for comparison, and on voxels of the whole
prior. Cost is CPU time of this process (one thread where OMP_NUM_THREADS=1), prediction in a batch
of 10,000.
"""

from __future__ import annotations

import os
import platform
import time

import numpy as np
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.datasets import data_file
from dipy_spinverse.compartments import NODDIModel
from dipy_spinverse.compartments.learned import LearnedModel
from dipy_spinverse.compartments.learned.model import LEARNERS
from dipy_spinverse.compartments.learned.training import simulated_voxels

MAPS = ("ndi", "odi", "fwf")
SNR = (10.0, 100.0)
N_TEST, N_FITTED = 4000, 400  # voxels of the prior, and how many of them are also fitted
N_QUICK, METHODS_QUICK = 40, ("mixture-density", "ridge")
BATCH = 10_000


def timed(function):
    """Result, CPU seconds and wall seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def errors(fit, truth, end=""):
    """Mean absolute error of each map, or of NAME_end."""
    return [np.abs(getattr(fit, name + end) - truth[name]).mean() for name in MAPS]


def row(name, training, cost, found, missed):
    """Line of the first table."""
    numbers = " | ".join(f"{value:.4f}" for value in (*found, *missed))
    return f"| {name} | {training} | {cost:.3f} | {numbers} |"


def coverage(fit, truth):
    """Lines of the second table."""
    for name in fit.MAPS:
        low, high = getattr(fit, f"{name}_low"), getattr(fit, f"{name}_high")
        below, above = (truth[name] < low).mean(), (truth[name] > high).mean()
        inside = 100 * (1 - below - above)
        yield f"| {name} | {inside:.1f} | {100 * below:.1f} | {100 * above:.1f} |"


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, f"{' and '.join(METHODS_QUICK)}, and fewer voxels that are fitted")
    parser.add_argument("--methods", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    arguments = parser.parse_args()
    quick, methods = arguments.quick, METHODS_QUICK if arguments.quick else arguments.methods
    stored = np.load(data_file("noddi200/noddi200.npz"))
    model = NODDIModel(gradient_table(stored["bvals"], bvecs=stored["bvecs"]))
    truth = dict(zip(MAPS, stored["truth"].T[:3], strict=True))
    batch = np.tile(stored["signal"], (BATCH // len(stored["signal"]), 1))
    values, data, sigma = simulated_voxels(model, N_TEST, SNR, np.random.default_rng(2**20))
    true_maps = model.maps(values)
    head = " | ".join(f"{m} {where}" for where in ("noddi200", "prior") for m in MAPS)
    lines = [
        f"| method | training CPU-s (wall) | CPU-ms / voxel | {head} |",
        "| --- " * 9 + "|",
    ]
    print(*lines, sep="\n", flush=True)
    covered = []

    def report(name, training, estimator, n, n_prior, ends=("",)):
        estimator.fit(stored["signal"][:2], sigma=1 / 30)  # compile
        found, cpu, _ = timed(lambda: estimator.fit(batch[:n]))
        prior = estimator.fit(data[:n_prior], sigma=sigma[:n_prior])
        of_prior = {name: values[:n_prior] for name, values in true_maps.items()}
        for end in ends:
            label = f"{name}{end.replace('_', ', ')}"
            n_known = min(n, len(stored["signal"]))
            known = {name: values[:n_known] for name, values in truth.items()}
            own = errors(found[:n_known], known, end)
            missed = errors(prior, of_prior, end)
            lines.append(row(label, training, 1e3 * cpu / n, own, missed))
            print(lines[-1], flush=True)
        return prior

    n, n_prior = (N_QUICK, N_QUICK) if quick else (len(stored["signal"]), N_FITTED)
    report("fit (with posterior)", "-", model, n, n_prior, ("_likeliest", ""))
    for method in methods:
        learned, cpu, wall = timed(lambda m=method: LearnedModel(model, method=m, snr=SNR))
        prior = report(method, f"{cpu:.0f} ({wall:.0f})", learned, BATCH, N_TEST)
        if method == "mixture-density":
            covered = list(coverage(prior, true_maps))
            print(*covered, sep="\n", flush=True)
    lines += [
        "",
        f"Intervals of 95 % of mixture-density, {N_TEST} voxels of the prior, SNR "
        f"{SNR[0]:g} to {SNR[1]:g} (standard error 0.3 %):",
        "",
        "| map | inside % | truth below % | truth above % |",
        "| --- " * 4 + "|",
        *covered,
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}"
    text = "\n".join([f"# Learned NODDI\n\n{machine}. {__doc__.strip()}\n", *lines, ""])
    keep("learned.md", text, complete=not quick)
    print(*lines[-6 - len(covered) :], sep="\n")


if __name__ == "__main__":
    main()
