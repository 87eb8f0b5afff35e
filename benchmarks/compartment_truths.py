"""Compartment models on independent signals: published NODDI, wrong values, crossings.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.compartment_truths [published told ...]

Signals come from direct quadrature in NumPy (`benchmarks.published_noddi`), with Rician noise of
SNR 30, in the HCP scheme; AMICO in the same run where it can be installed.

Duration: about 6 min on 1 core (--quick: 1 min). Writes
results/compartment_truths_NAME.md for each table.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.peers import FOLDER, peer_result
from benchmarks.prior_voxels import hcp_scheme
from benchmarks.published_noddi import published_signals, tissue
from benchmarks.tables import table
from dipy_spinverse import NODDIModel, Status
from dipy_spinverse.compartments import CompartmentModel
from dipy_spinverse.compartments.fibres import with_fibres

SNR = 30
MAPS = ("ndi", "odi", "fwf")
_N_POOL = 5000  # voxels, of which images of false_alarms are drawn


def magnitudes(clean, snr=SNR, seed=1):
    """Rician magnitudes of signals."""
    noise = np.random.default_rng(seed).standard_normal((2, *clean.shape)) / np.expand_dims(
        snr, -1
    )
    return np.hypot(clean + noise[0], noise[1])


def scheme():
    """Acquisition, b and directions."""
    acquisition = hcp_scheme()
    return acquisition, np.where(acquisition.b0_mask, 0, acquisition.b), acquisition.directions


def held(fit, name, truth):
    """Coverage of the truth by intervals."""
    return (
        (getattr(fit, f"{name}_low") <= truth) & (truth <= getattr(fit, f"{name}_high"))
    ).mean()


@dataclass(frozen=True)
class Case:
    """Voxels of published NODDI, and what they are fitted with.

    Attributes
    ----------
    word : str
    options : mapping
        Of `NODDIModel`; noise is known unless "sigma" is None.
    diffusivity : float
        Of the truth, um^2/ms.
    fanning : bool
        Whether the truth has Bingham's distribution.
    snr : float
    amico : bool
        Whether AMICO fits the same voxels.
    """

    word: str
    options: Mapping[str, object] = field(default_factory=dict)
    diffusivity: float = 1.7
    fanning: bool = False
    snr: float = SNR
    amico: bool = False


def published(n: int, peers: Path | None) -> str:
    """Published NODDI: errors of the median, and coverage of 95 % intervals."""
    dispersed = {"extra_cellular": "dispersed"}
    return _noddi(
        n,
        peers,
        Case("published", amico=True),
        Case("the same, noise unknown", {"sigma": None}),
        Case("the same", snr=15, amico=True),
        Case("the same", snr=60, amico=True),
        Case("published, water outside dispersed", dispersed),
    )


def otherwise(n: int, peers: Path | None) -> str:
    """Tissue outside published NODDI, with models that include it and models that do not.

    odi of Bingham's distribution is the total one, 2/pi arctan(1 / sqrt(kappa (kappa - beta))).
    """
    cases = []
    for snr in (SNR, 15):
        free, bingham = {"parallel_diffusivity": "free"}, {"dispersion": "bingham"}
        cases += [
            Case("truth 1.9 um2/ms", diffusivity=1.9, snr=snr, amico=True),
            Case("the same, diffusivity free", free, diffusivity=1.9, snr=snr),
            Case("Bingham truth", fanning=True, snr=snr, amico=True),
            Case("the same, Bingham model", bingham, fanning=True, snr=snr),
        ]
    return otherwise.__doc__.splitlines()[2].strip() + "\n\n" + _noddi(n, peers, *cases)


def _total_odi(odi, fanning):
    kappa = 1 / np.tan(0.5 * np.pi * odi)
    return 2 / np.pi * np.arctan2(1, kappa * np.sqrt(1 - fanning))


def _noddi(n, peers, *cases):
    acquisition, b, directions = scheme()
    rows = []
    for case in cases:
        truth = tissue(n, fanning=case.fanning)
        clean = published_signals(b, directions, truth, parallel=case.diffusivity)
        if case.fanning:
            truth["total"] = _total_odi(truth["odi"], truth["fanning"])
        sought = {name: truth["total" if case.fanning and name == "odi" else name]
                  for name in MAPS}  # fmt: skip
        options = {"sigma": 1 / case.snr} | dict(case.options)
        sigma = options.pop("sigma")
        model = NODDIModel(acquisition, dtype="float32", **options)
        data = magnitudes(clean, case.snr)
        model.fit(data[:5])
        costs = []
        for n_draws in (0, 256):
            started = time.process_time()
            fit = model.fit(data, sigma=sigma, n_draws=n_draws)
            costs.append(f"{1e3 * (time.process_time() - started) / n:.1f}")
        found = {name: getattr(fit, name) for name in MAPS}
        if "dispersion" in options:
            found["odi"] = _total_odi(fit.odi, fit.fanning)
        own = truth if "dispersion" in options else sought
        shares = [f"{100 * held(fit, name, own[name]).mean():.1f}" for name in MAPS]
        rows.append([case.word, case.snr, *_errors(found, sought), *shares, *costs])
        print(rows[-1], flush=True)
        if case.amico:
            found = peer_result(peers, "amico", "amico_noddi", signals=data, bvals=1e3 * b,
                                bvecs=directions)  # fmt: skip
        if case.amico and found is not None:
            cost = 1e3 * float(found["cpu"]) / n
            rows.append(
                ["AMICO", case.snr, *_errors(found, sought), "", "", "", f"{cost:.1f}", ""]
            )
            print(rows[-1], flush=True)
    heads = ["", "SNR", *(f"MAE {name}" for name in MAPS),
             *(f"coverage {name}, %" for name in MAPS),
             "CPU ms per voxel, maximum likelihood", "with intervals"]  # fmt: skip
    return table(heads, rows)


def _errors(found, truth):
    return [f"{np.abs(found[name] - truth[name]).mean():.4f}" for name in MAPS]


def told(n: int, _: Path | None) -> str:
    """Detection of a wrong model: status of voxels, noise unknown."""
    acquisition, b, directions = scheme()
    model, truth = NODDIModel(acquisition, dtype="float32"), tissue(n)
    axes = np.linalg.qr(np.random.default_rng(2).standard_normal((n, 3, 3)))[0]
    fibre = {"ndi": np.full(n, 0.6), "odi": np.full(n, 0.05), "fwf": np.zeros(n)}
    right = published_signals(b, directions, truth)
    cases = {"right": right}
    for diffusivity in (1.8, 1.9, 2.2):
        cases[f"parallel diffusivity {diffusivity} for 1.7"] = published_signals(
            b, directions, truth, parallel=diffusivity
        )
    for number in (2, 3):
        parts = [published_signals(b, directions, {**fibre, "axis": axes[:, k]})
                 for k in range(number)]  # fmt: skip
        cases[f"{number} fibres at right angles"] = np.mean(parts, axis=0)
    cases["noise alone"] = 0 * right
    loud = np.random.default_rng(3).random(n) < 0.15
    rows = []
    for word, clean in {**cases, "15 % with double noise": right}.items():
        snr = np.where(loud, SNR / 2, SNR) if "double" in word else np.full(n, SNR)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit = model.fit(magnitudes(clean, snr), n_draws=0)
        text = [str(w.message) for w in said if "is fixed at" in str(w.message)]
        better = text[0].split("about ")[1].split(":")[0] if text else ""
        shares = [f"{100 * (fit.status == status).mean():.1f}"
                  for status in (Status.CONVERGED, Status.MISFIT, Status.NO_SIGNAL)]  # fmt: skip
        rows.append([word, *shares, better])
        print(rows[-1], flush=True)
    heads = ["", "CONVERGED, %", "MISFIT, %", "NO_SIGNAL, %", "diffusivity that the warning names"]
    return table(heads, rows)


def false_alarms(n: int, _: Path | None) -> str:
    """False rejections of a correct parallel diffusivity in whole images, noise unknown."""
    rows = []
    for n_b0, n_directions in ((3, 30), (18, 90)):
        rng, b = np.random.default_rng(n_b0), np.repeat([0.0, 1, 2], [n_b0, *[n_directions] * 2])
        directions = rng.standard_normal((len(b), 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        model = NODDIModel(gradient_table(1e3 * b, bvecs=directions))
        clean = published_signals(b, directions, tissue(_N_POOL, seed=n_b0))
        for n_voxels in (500, 2000):
            counts = np.zeros(2, dtype=int)
            for seed in range(n):
                image = np.random.default_rng(seed).choice(_N_POOL, n_voxels, replace=False)
                data = magnitudes(clean[image], seed=seed)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    fit = model.fit(data, n_draws=0)
                warned = any("is fixed at" in str(w.message) for w in caught)
                counts += warned, (fit.status == Status.MISFIT).sum()
            share = f"{100 * counts[1] / (n * n_voxels):.2f}"
            rows.append([len(b), n_voxels, f"{counts[0]} of {n}", share])
            print(rows[-1], flush=True)
    return table(["volumes", "voxels", "images with a warning", "MISFIT, % of voxels"], rows)


def crossings(n: int, _: Path | None) -> str:
    """Fibre populations by evidence (crossings=True), noise known."""
    acquisition, b, directions = scheme()
    model, rng, rows = NODDIModel(acquisition, dtype="float32"), np.random.default_rng(3), []
    for number, angle in ((0, 0), (1, 0), (2, 45), (2, 60), (2, 90), (3, 60), (3, 90)):
        axes = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
        if number > 1:
            cosine = np.full((3, 3), np.cos(np.radians(angle)))
            np.fill_diagonal(cosine, 1)
            axes = np.einsum("ij,vjk->vik", np.linalg.cholesky(cosine), axes)
        count = max(number, 1)
        share, ndi = rng.dirichlet(np.full(count, 8.0), n), rng.uniform(0.4, 0.8, n)
        fwf = rng.uniform(0, 0.15, n)[:, None]
        odi = rng.uniform(0.03, 0.12, (n, count)) if number else np.full((n, 1), 0.97)
        clean = 0
        for k in range(count):
            truth = {"ndi": ndi, "odi": odi[:, k], "fwf": 0 * ndi, "axis": axes[:, k]}
            clean = clean + share[:, k : k + 1] * published_signals(b, directions, truth)
        data = magnitudes((1 - fwf) * clean + fwf * np.exp(-3 * b))
        started = time.process_time()
        fit = model.fit(data, sigma=1 / SNR, crossings=True, n_draws=0)
        cost = 1e3 * (time.process_time() - started) / n
        right = fit.n_fibres == number
        row = [number, angle, f"{100 * right.mean():.0f}"]
        if number:
            draws = model.fit(data[right], sigma=1 / SNR, crossings=True)
            cosine = np.abs(np.einsum("vik,vjk->vij", draws.axes[:, :number],
                                      axes[right, :number]))  # fmt: skip
            off = np.degrees(np.arccos(cosine.max(axis=2).clip(max=1)))
            order = cosine.argmax(axis=2)
            shares = np.take_along_axis(((1 - fwf) * share)[right, :number], order, axis=1)
            part = draws.fibre_fractions[:, :number]
            low, high = (getattr(draws, f"fibre_fractions{end}")[:, :number]
                         for end in ("_low", "_high"))  # fmt: skip
            cone = 100 * (off <= draws.axes_cone[:, :number]).mean()
            # fmt: off
            row += [f"{off.mean():.2f}", f"{np.abs(part - shares).mean():.3f}",
                    f"{100 * ((low <= shares) & (shares <= high)).mean():.0f}", f"{cone:.0f}",
                    f"{100 * held(draws, 'odi', (share * odi).sum(axis=1)[right]):.0f}"]
            # fmt: on
        else:
            row += [""] * 5
        rows.append([*row, f"{cost:.0f}"])
        print(rows[-1], flush=True)
    heads = ["fibres", "angle", "number correct, %", "error of axes, deg", "MAE of fractions",
             "coverage of fractions, %", "axes in their cone, %", "coverage of odi, %",
             "CPU ms per voxel (n_draws=0)"]  # fmt: skip
    return table(heads, rows) + "\n\n" + _three_of_prior(model, 5 * n)


def _three_of_prior(model, n):
    """Coverage for three populations with all parameters from the prior, or of low dispersion."""
    several, rows = CompartmentModel(model.acquisition, with_fibres(model.definition, 3)), []
    for word, most in (("from the prior", 1.0), ("the same, each odi below 0.3", 0.3)):
        truth = several.draw(n, seed=4)
        truth |= {name: most * x for name, x in truth.items() if name.startswith("odi")}
        directions = np.stack([truth[name] for name in several.definition.axes], axis=1)
        fit = model.fit(magnitudes(several.signals(truth)), sigma=1 / SNR,
                        peaks=SimpleNamespace(peak_dirs=directions))  # fmt: skip
        maps = several.maps(truth)
        shares = [f"{100 * held(fit, name, maps[name]):.1f}" for name in MAPS]
        above = f"{100 * (fit.odi_low > maps['odi']).mean():.1f}"
        rows.append([word, *shares, above])
        print(rows[-1], flush=True)
    heads = [
        "three populations",
        *(f"coverage {name}, %" for name in MAPS),
        "odi: interval above, %",
    ]
    return (
        f"{n} voxels of three populations, directions fixed to peaks. Intervals of parameters "
        "from the prior should cover 95 %:\n\n" + table(heads, rows)
    )


TABLES = {
    published: (1000, 40), told: (200, 40), crossings: (40, 10),
    otherwise: (150, 40), false_alarms: (20, 2),
}  # fmt: skip


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "a sixth of the voxels")
    names = [function.__name__ for function in TABLES]
    parser.add_argument("tables", nargs="*", default=names, metavar="TABLE")
    parser.add_argument("--peers", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peers = None if options.quick else options.peers
    for function, (n, few) in TABLES.items():
        if function.__name__ in options.tables:
            count = few if options.quick else n
            unit = "images" if function is false_alarms else "voxels"
            head = f"# {function.__doc__.splitlines()[0]}\n\n{count} {unit} each.\n\n"
            text = head + function(count, peers) + "\n"
            print(text, flush=True)
            keep(f"compartment_truths_{function.__name__}.md", text, complete=not options.quick)


if __name__ == "__main__":
    main()
