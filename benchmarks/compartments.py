"""Compartment models against the truth, with AMICO, dmipy and DIPY where they can be installed.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.compartments [noddi camino activeax ...]

creates an environment for each peer in ``--peers FOLDER`` (once) and prints the tables.

Duration: about 15 min on 2 cores (--quick, without peers: 1 min). Writes
results/compartments_NAME.md for each table.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.ivim import IvimModel
from scipy.stats import spearmanr

from benchmarks.command import command, keep
from benchmarks.datasets import data_file, load_duval_cat
from benchmarks.peers import FOLDER, peer_result
from benchmarks.prior_voxels import hcp_scheme, models, simulated
from benchmarks.tables import table
from dipy_spinverse import ActiveAxModel, IVIMModel, NODDIModel, ZCDModel
from dipy_spinverse.compartments import Compartment, complement, compose, tortuosity
from dipy_spinverse.compartments.definition import Parameter

_SNR = 30
_NODDI_MAPS = ("ndi", "odi", "fwf")


@dataclass(frozen=True)
class Run:
    """Extent of a run: which peers, and the fraction of the voxels.

    Attributes
    ----------
    peers : Path or None
        Folder of the peers' environments; without peers where None.
    part : float
        Of the voxels, at most 1.
    """

    peers: Path | None
    part: float = 1.0

    def some(self, n: int) -> int:
        """This fraction of `n` voxels."""
        return max(int(self.part * n), 1)


def noddi(run: Run) -> str:
    """Watson NODDI on 200 voxels of known parameters (2048 samples), and its time in a batch."""
    with np.load(data_file("noddi200/noddi200.npz")) as file:
        given = dict(file)
    given |= {name: given[name][: run.some(200)] for name in ("signal", "truth")}
    truth = dict(zip(_NODDI_MAPS, given["truth"].T, strict=False))
    gtab = gradient_table(given["bvals"], bvecs=given["bvecs"])
    rows, notes, own = [], [], None
    for likelihood, sigma in (("rician", None), ("rician", 1 / _SNR), ("gaussian", None)):
        model = NODDIModel(gtab, likelihood=likelihood)
        fit = model.fit(given["signal"], sigma=sigma, n_draws=2048)
        known = "" if sigma is None else ", noise known"
        if own is None:
            own = fit.odi_likeliest
            shares = [f"{100 * _held(fit, name, truth[name]).mean():.1f}" for name in truth]
            notes.append(
                "95 % intervals of the first rows cover NDI, ODI and FWF in "
                f"{', '.join(shares)} % of the voxels."
            )
        for end, word in (("_likeliest", "maximum likelihood"), ("", "posterior median")):
            found = {name: getattr(fit, name + end) for name in truth}
            rows.append([f"dipy_spinverse, {likelihood}{known}, {word}", *_mae(found, truth), ""])
    batch = np.tile(given["signal"], (10_000 // len(given["signal"]), 1))
    batch *= np.random.default_rng(0).uniform(0.9, 1.1, (len(batch), 1))
    for word, n_voxels, arguments in (
        ("maximum likelihood", 10_000, {"n_draws": 0}),
        (
            "maximum likelihood, two processes",
            10_000,
            {"n_draws": 0, "engine": "joblib", "n_jobs": 2},
        ),
        ("with intervals", 1_000, {}),
    ):
        model, n_voxels = NODDIModel(gtab, dtype="float32"), run.some(n_voxels)
        model.fit(batch[:20], **arguments)  # compile, start workers
        wall, cpu = time.perf_counter(), time.process_time()
        model.fit(batch[:n_voxels], **arguments)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        of_all = "" if "engine" in arguments else f", {1e3 * cpu / n_voxels:.2f} CPU"
        rows.append([f"{n_voxels} voxels, float32, {word}", "", "", "",
                     f"{1e3 * wall / n_voxels:.2f} wall{of_all}"])  # fmt: skip
    n = len(given["bvals"])
    arrays = {"signals": given["signal"], "bvals": given["bvals"], "bvecs": given["bvecs"]}
    arrays |= {"small_delta": np.full(n, 0.0106), "big_delta": np.full(n, 0.0431)}
    for peer, task in (("amico", "amico_noddi"), ("dmipy", "dmipy_noddi")):
        found = peer_result(run.peers, peer, task, **arrays)
        if found is not None:
            paired = np.abs(own - truth["odi"]) - np.abs(found["odi"] - truth["odi"])
            error = paired.std() / np.sqrt(len(paired))
            notes.append(
                f"Error of ODI of the first row less {peer}'s, voxel by voxel: "
                f"{paired.mean():+.4f}, standard error {error:.4f}."
            )
            speed = (1e3 * float(found[name]) / len(given["signal"]) for name in ("wall", "cpu"))
            rows.append([f"{peer}, 200 voxels", *_mae(found, truth),
                         "{:.2f} wall, {:.2f} CPU".format(*speed)])  # fmt: skip
    return "\n\n".join([table(["", "NDI", "ODI", "FWF", "ms per voxel"], rows), *notes])


def camino(run: Run) -> str:
    """Fraction inside of impermeable parallel cylinders of gamma-distributed radii."""
    acquisition = hcp_scheme()
    rows = []
    for name in ("1_7", "2_0", "2_3"):
        diffusivity = float(name.replace("_", "."))
        signals = np.loadtxt(data_file(f"camino_parallel/data_camino_D{name}.txt"))
        truth = np.loadtxt(data_file(f"camino_parallel/fractions_camino_D{name}.txt"))
        for kernel in ("stick", "cylinder"):
            model = _with_tortuosity(acquisition, kernel, diffusivity)
            fit = model.fit(signals, sigma=0.01, n_draws=0)
            rows.append([f"D {diffusivity}, {kernel} + zeppelin", *_errors(fit.share, truth)])
        found = peer_result(
            run.peers, "dmipy", "dmipy_stick_zeppelin", signals=signals,
            bvals=1e3 * np.where(acquisition.b0_mask, 0, acquisition.b),
            bvecs=np.where(acquisition.b0_mask[:, None], [1.0, 0, 0], acquisition.directions),
            small_delta=acquisition.small_delta / 1e3, big_delta=acquisition.big_delta / 1e3,
            diffusivity=diffusivity,
        )  # fmt: skip
        if found is not None:
            row = [f"D {diffusivity}, dmipy stick + zeppelin", *_errors(found["fraction"], truth)]
            rows.append(row)
    return table(["", "mean absolute error", "mean error", "rank correlation"], rows)


def activeax(run: Run) -> str:
    """Diameter and restricted fraction of cat spinal cord against histology."""
    voxels = load_duval_cat(voxels_per_stratum=6)
    acquisition = voxels.acquisition
    along = float(np.median(voxels.diffusivity))
    peaks = _Peaks(voxels.orientation[:, None])
    sigma = voxels.repeatability
    options = {"parallel_diffusivity": along * 1e-3,
               "isotropic_diffusivity": voxels.free_diffusivity * 1e-3}  # fmt: skip
    rows = []
    for word, model in (
        ("ActiveAx", ActiveAxModel(acquisition, likelihood="gaussian", **options)),
        ("ActiveAx without immobile water",
         ActiveAxModel(acquisition, likelihood="gaussian", dot=False, **options)),
        ("ZCD", ZCDModel(acquisition, likelihood="gaussian")),
    ):  # fmt: skip
        started = time.process_time()
        fit = model.fit(voxels.signals, sigma=sigma, peaks=peaks, n_draws=0)
        seconds = time.process_time() - started
        rows.append([word, *_ranks(fit.axon_diameter, fit.restricted_fraction, voxels),
                     f"{1e3 * seconds / len(sigma):.0f}"])  # fmt: skip
    found = peer_result(
        run.peers, "dmipy", "dmipy_axcaliber", signals=voxels.signals, diffusivity=along,
        free=voxels.free_diffusivity, bvals=1e3 * np.where(acquisition.b0_mask, 0, acquisition.b),
        bvecs=_in_plane(voxels), small_delta=acquisition.small_delta / 1e3,
        big_delta=acquisition.big_delta / 1e3,
    )  # fmt: skip
    if found is not None:
        ranks = _ranks(found["diameter"], found["fraction"], voxels)
        rows.append(["dmipy, cylinder + zeppelin + ball", *ranks,
                     f"{1e3 * float(found['cpu']) / len(sigma):.0f}"])  # fmt: skip
    heads = ["", "rank correlation: diameter", "the same: fraction", "median diameter, um",
             "that of histology, um", "CPU ms per voxel"]  # fmt: skip
    return f"{len(sigma)} voxels.\n\n" + table(heads, rows)


def ivim(run: Run) -> str:
    """IVIM on simulated voxels, compared with DIPY's trr."""
    b = np.array([0, 10, 20, 30, 40, 60, 80, 100, 120, 140, 160, 180, 200, 300, 500, 800])
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(b), 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gtab = gradient_table(b, bvecs=np.where(b[:, None] > 0, vectors, 0), b0_threshold=0)
    n = run.some(2000)
    truth = {"perfusion_fraction": rng.uniform(0.05, 0.3, n), "D": rng.uniform(0.5, 2, n),
             "D_star": rng.uniform(5, 40, n)}  # fmt: skip
    model = IVIMModel(gtab)
    clean = model.signals(truth)
    noise = rng.standard_normal((2, *clean.shape)) / 50
    data = 1000 * np.hypot(clean + noise[0], noise[1])
    model.fit(data[:100], n_draws=0)
    rows = []
    for word, arguments in (
        ("maximum likelihood", {"n_draws": 0}),
        ("the same, noise known", {"n_draws": 0, "sigma": 20.0}),
        ("posterior median", {"sigma": 20.0}),
    ):
        started = time.process_time()
        fit = model.fit(data, **arguments)
        seconds = time.process_time() - started
        found = [getattr(fit, name) for name in ("perfusion_fraction", "D", "D_star")]
        rows.append([f"dipy_spinverse, {word}", *_ivim_errors(found, truth),
                     f"{1e3 * seconds / n:.3f}"])  # fmt: skip
    peer = IvimModel(gtab, fit_method="trr")
    some = slice(0, 500)
    started = time.process_time()
    fit = peer.fit(data[some])
    seconds = time.process_time() - started
    found = [fit.perfusion_fraction, 1.0 * fit.D, 1.0 * fit.D_star]
    subset = {name: value[some] for name, value in truth.items()}
    rows.append(["DIPY trr, first 500", *_ivim_errors(found, subset), f"{2 * seconds:.3f}"])
    heads = ["", "MAE f", "MAE D, 1e-3 mm2/s", "MAE D*, 1e-3 mm2/s", "CPU ms per voxel"]
    return f"{n} voxels, 16 b-values, SNR 50.\n\n" + table(heads, rows)


def intervals(run: Run) -> str:
    """Coverage of 95 % intervals: parameters from the prior, Rician noise."""
    rows, inside, n = [], [], run.some(2000)
    known = [(*case, True) for case in models(dtype="float32")]
    title, of_noddi, usual, _ = known[0]
    known[1:1] = [
        ("the same, noise unknown", of_noddi, usual, False),
        (title, of_noddi, 15, True),
    ]
    for word, model, snr, given in known:
        truth, data = simulated(model, n, snr)
        started = time.process_time()
        fit = model.fit(data, sigma=1 / snr if given else None)
        seconds = time.process_time() - started
        for name, values in model.maps(truth).items():
            if name == "S0":
                continue
            held = _held(fit, name, values).mean()
            inside.append(0.93 <= held <= 0.97)
            errors = (
                np.abs(getattr(fit, name + end) - values).mean() / np.ptp(values)
                for end in ("_likeliest", "")
            )
            width = getattr(fit, name + "_high") - getattr(fit, name + "_low")
            width = width.mean() / np.ptp(values)
            numbers = [f"{number:.3f}" for number in (width, *errors)]
            cost = f"{1e3 * seconds / n:.1f}"
            rows.append([word, f"{snr}", name, f"{100 * held:.1f}", *numbers, cost])
    heads = ["model", "SNR", "map", "coverage, %", "mean width over range",
             "mean absolute error over range: maximum likelihood", "the same: posterior median",
             "CPU ms per voxel"]  # fmt: skip
    spread = 100 * np.sqrt(0.95 * 0.05 / n)
    return (
        f"{n} voxels of each model, so that 95 % has a standard error of {spread:.1f} %. "
        f"{sum(inside)} of {len(inside)} maps have a coverage of 93 to 97 %.\n\n"
        + table(heads, rows)
    )


class _Peaks:
    """Directions in the layout of DIPY's peaks."""

    def __init__(self, directions):
        self.peak_dirs = directions


def _with_tortuosity(acquisition, kernel, diffusivity):
    arguments = {"diffusivity": diffusivity}
    arguments |= {"diameter": "diameter"} if kernel == "cylinder" else {}
    parameters = [Parameter("share", 0.0, 1.0)]
    parameters += [Parameter("diameter", 0.2, 10.0, "um")] if kernel == "cylinder" else []
    zeppelin = {"parallel": diffusivity, "perpendicular": tortuosity(diffusivity, "share")}
    parts = [
        Compartment(kernel, "tissue", arguments, share="share"),
        Compartment("zeppelin", "tissue", zeppelin, share=complement("share")),
    ]
    return compose(acquisition, parts, parameters)


def _in_plane(voxels):
    """Directions in the frame of the median axis of fibres, which becomes z."""
    axis = np.linalg.svd(voxels.orientation)[2][0]
    frame = np.linalg.svd(axis[None])[2][[1, 2, 0]]
    turned = voxels.acquisition.directions @ frame.T
    return np.where(voxels.acquisition.b0_mask[:, None], [1.0, 0, 0], turned)


def _mae(found, truth):
    return [f"{np.abs(found[name] - truth[name]).mean():.4f}" for name in _NODDI_MAPS]


def _held(fit, name, truth):
    """Whether the 95 % intervals (V,) of a map cover the truth."""
    return (getattr(fit, name + "_low") <= truth) & (truth <= getattr(fit, name + "_high"))


def _errors(found, truth):
    error = found - truth
    rank = spearmanr(found, truth).statistic
    return [f"{np.abs(error).mean():.4f}", f"{error.mean():+.4f}", f"{rank:.3f}"]


def _ranks(diameter, fraction, voxels):
    histology = voxels.histology
    return [
        f"{spearmanr(diameter, histology['axon_diameter']).statistic:.2f}",
        f"{spearmanr(fraction, histology['restricted_fraction']).statistic:.2f}",
        f"{np.median(diameter):.1f}",
        f"{np.median(histology['axon_diameter']):.1f}",
    ]


def _ivim_errors(found, truth):
    scales = (1, 1e3, 1e3)
    names = ("perfusion_fraction", "D", "D_star")
    return [
        f"{np.abs(s * f - truth[name]).mean():.4f}"
        for s, f, name in zip(scales, found, names, strict=True)
    ]


TABLES = {f.__name__: f for f in (noddi, camino, activeax, ivim, intervals)}


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "noddi and intervals, a tenth of the voxels")
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE")
    parser.add_argument("--peers", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    if options.quick:
        chosen, run = ("noddi", "intervals"), Run(None, part=0.1)
    else:
        chosen, run = options.tables, Run(options.peers)
    for name in chosen:
        text = f"# Compartment models: {name}\n\n{TABLES[name].__doc__.splitlines()[0]}\n\n"
        text += TABLES[name](run)
        print(text)
        keep(f"compartments_{name}.md", text, complete=not options.quick)


if __name__ == "__main__":
    main()
