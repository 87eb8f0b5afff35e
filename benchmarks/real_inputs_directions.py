"""Rows of `benchmarks.real_inputs`: models of measurements in single directions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.ivim import IvimModel

from benchmarks.peers import peer_result
from benchmarks.published_noddi import published_signals, tissue
from benchmarks.real_inputs_rows import Trial, row
from benchmarks.real_inputs_truths import (
    GYROMAGNETIC_RATIO,
    ball,
    cylinders,
    dispersed,
    ivim,
    magnitudes,
    rotations,
    sticks,
    unit_vectors,
)
from dipy_spinverse import ActiveAxModel, IVIMModel, LearnedModel, NODDIModel, ZCDModel
from dipy_spinverse.acquisition import TensorAcquisition
from dipy_spinverse.compartments import (
    Compartment,
    MTENODDIModel,
    Parameter,
    StandardModel,
    compose,
)

SNR = 30
_IVIM_SNR = 50
_IVIM_B = np.array([0, 0, 0, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 500, 600, 800.0])
_DROPPED, _REMAINING = 4, 0.3


def table_of(shells, seed=1):
    """b (s/mm^2) and directions of shells (b, number), each over the half sphere."""
    b = np.concatenate([np.full(n, float(each)) for each, n in shells])
    return b, np.concatenate([unit_vectors(n, seed + k) for k, (_, n) in enumerate(shells)])


def clinical(b0=0.0):
    """98 volumes: 8 b0, 30 of 700 and 60 of 2000 s/mm^2."""
    return table_of([(b0, 8), (700, 30), (2000, 60)])


def gradients(b, directions, **options):
    """Gradient table whose b = 0 have no direction."""
    return gradient_table(b, bvecs=np.where(b[:, None] > 0, directions, 0.0), **options)


def _noddi(n, rng, table=None, *, truth=None, parallel=1.7, spoil=None, b0_threshold=50,
           maps=("ndi", "odi", "fwf"), amico=False, **options):  # fmt: skip
    b, directions = clinical() if table is None else table
    truth = tissue(n, int(rng.integers(2**31))) if truth is None else truth
    clean = published_signals(1e-3 * b, directions, truth, parallel=parallel)
    data = magnitudes(clean if spoil is None else spoil(clean), 1 / SNR, rng)
    gtab = gradients(b, directions, b0_threshold=b0_threshold)

    def peer(folder):
        found = amico and peer_result(
            folder, "amico", "amico_noddi", signals=data,
            bvals=np.where(b <= b0_threshold, 0, b), bvecs=directions,
        )  # fmt: skip
        return {"AMICO": {m: found[m] for m in maps}} if found else {}

    run = lambda: NODDIModel(gtab, **options).fit(data)  # noqa: E731
    return Trial(run, {name: truth[name] for name in maps}, peer=peer)


@row("ordinary", "NODDI, 98 volumes, SNR 30")
def noddi(n, rng):
    return _noddi(n, rng, amico=True)


@row("A1", "NODDI, b0 volumes of 50 s/mm2")
def b0_of_50(n, rng):
    return _noddi(n, rng, clinical(50.0), amico=True)


@row("A1", "NODDI, b0 volumes of 65 s/mm2, threshold 100")
def b0_of_65(n, rng):
    return _noddi(n, rng, clinical(65.0), b0_threshold=100, amico=True)


@row("A3", "NODDI, parallel diffusivity 1.9, fixed at 1.7")
def parallel_1_9(n, rng):
    return _noddi(n, rng, parallel=1.9, amico=True)


@row("A3", "NODDI, parallel diffusivity 1.8, fixed at 1.7", n=600)
def parallel_1_8(n, rng):
    return _noddi(n, rng, parallel=1.8)


@row("A10", "NODDI, 4 of 98 volumes at .3 of their signal, the same in all voxels")
def dropouts(n, rng):
    volumes = rng.choice(np.arange(8, 98), _DROPPED, replace=False)
    factor = np.ones(98)
    factor[volumes] = _REMAINING
    return _noddi(n, rng, spoil=lambda clean: factor * clean, amico=True)


@row("A10", "NODDI, 4 of 98 volumes at .3 of their signal, others in each voxel")
def dropouts_per_voxel(n, rng):
    def spoil(clean):
        ranks = rng.random((n, 90)).argsort(axis=1)
        factor = np.where(ranks < _DROPPED, _REMAINING, 1.0)
        return np.concatenate([clean[:, :8], factor * clean[:, 8:]], axis=1)

    return _noddi(n, rng, spoil=spoil)


@row("A13", "NODDI, no b0 volume")
def missing_b0(n, rng):
    b, directions = clinical()
    return _noddi(n, rng, (b[8:], directions[8:]))


@row("A6", "NODDI where two fibres cross at 90 degrees")
def noddi_crossing(n, rng):
    b, directions = clinical()
    truth, axes = tissue(n, int(rng.integers(2**31))), rotations(n, rng)
    truth["odi"] = rng.uniform(0.02, 0.15, n)
    parts = [published_signals(1e-3 * b, directions, truth | {"axis": axes[:, k]})
             for k in (0, 1)]  # fmt: skip
    data = magnitudes(np.mean(parts, axis=0), 1 / SNR, rng)
    run = lambda: NODDIModel(gradients(b, directions)).fit(data)  # noqa: E731
    return Trial(run, {name: truth[name] for name in ("ndi", "fwf")})


@row("ordinary", "NODDI, Bingham", n=200)
def noddi_bingham(n, rng):
    truth = tissue(n, int(rng.integers(2**31)), fanning=True)
    maps = ("ndi", "odi", "fwf", "fanning")
    return _noddi(n, rng, table_of([(0, 10), (1000, 60), (2500, 60)]), truth=truth, maps=maps,
                  dispersion="bingham")  # fmt: skip


@row("ordinary", "NODDI, learned")
def noddi_learned(n, rng):
    trial = _noddi(n, rng)
    b, directions = clinical()
    training = {"n_train": 20_000, "max_epochs": 30}

    def run():
        model = LearnedModel(NODDIModel(gradients(b, directions)), snr=(10, 100), **training)
        return model.fit(magnitudes(clean, 1 / SNR, rng))

    truth = tissue(n, int(rng.integers(2**31)))
    clean = published_signals(1e-3 * b, directions, truth)
    return Trial(run, {name: truth[name] for name in trial.truth})


@row("ordinary", "MTE-NODDI, two echo times", n=200)
def noddi_echo_times(n, rng):
    b, directions = clinical()
    b, directions, te = np.tile(b, 2), np.tile(directions, (2, 1)), np.repeat([0.07, 0.12], 98)
    truth = tissue(n, int(rng.integers(2**31)))
    truth |= {"neurite_t2": rng.uniform(60, 100, n), "extra_t2": rng.uniform(40, 80, n)}
    ndi, fwf, along = truth["ndi"], truth["fwf"], np.full(n, 1.7)
    inside = dispersed(1e-3 * b, 1.0, directions, truth["axis"], truth["odi"], along, 0 * along)
    whole = published_signals(1e-3 * b, directions, truth | {"fwf": 0 * fwf})
    parts = [(1 - fwf)[:, None] * ndi[:, None] * inside,
             (1 - fwf)[:, None] * (whole - ndi[:, None] * inside),
             fwf[:, None] * ball(1e-3 * b, np.full(n, 3.0))]  # fmt: skip
    t2 = truth["neurite_t2"], truth["extra_t2"], np.full(n, 1000.0)
    clean = sum(p * np.exp(-1e3 * te / t[:, None]) for p, t in zip(parts, t2, strict=True))
    data = magnitudes(clean, 0.25 / SNR, rng)
    gtab = gradients(b, directions, small_delta=0.01, big_delta=0.03)
    names = ("ndi", "odi", "fwf", "neurite_t2", "extra_t2")
    run = lambda: MTENODDIModel(gtab, te=te).fit(data)  # noqa: E731
    return Trial(run, {name: truth[name] for name in names})


def _standard(n, rng, spherical):
    shells = [(0, 8), (1000, 30), (2500, 60), (5000, 60)]
    b, directions = table_of(shells)
    shape = np.ones(len(b))
    if spherical:
        b, directions = np.r_[b, np.repeat([1000.0, 2000.0], 10)], np.r_[directions, np.eye(3)[
            np.arange(20) % 3]]  # fmt: skip
        shape = np.r_[shape, np.zeros(20)]
    axes, odi = rotations(n, rng)[:, 0], rng.uniform(0.05, 0.4, n)
    fractions = rng.dirichlet([6, 6, 1], n).T
    truth = {
        "neurite_fraction": fractions[0], "extra_fraction": fractions[1], "odi": odi,
        "neurite_diffusivity": rng.uniform(1.8, 2.6, n),
        "extra_parallel": rng.uniform(1.4, 2.2, n), "extra_perpendicular": rng.uniform(0.4, 1, n),
    }  # fmt: skip
    diffusivities = [(truth["neurite_diffusivity"], 0 * odi),
                     (truth["extra_parallel"], truth["extra_perpendicular"])]  # fmt: skip
    clean = fractions[2][:, None] * ball(1e-3 * b, np.full(n, 3.0))
    for share, tensor in zip(fractions, diffusivities, strict=False):
        signals = dispersed(1e-3 * b, shape, directions, axes, odi, *tensor)
        clean = clean + share[:, None] * signals
    data = magnitudes(clean, 1 / 50, rng)
    dyads = np.einsum("mi,mj->mij", directions, directions)
    tensors = shape[:, None, None] * dyads + (1 - shape)[:, None, None] * np.eye(3) / 3
    acquisition = (TensorAcquisition(1e-3 * b[:, None, None] * tensors) if spherical
                   else gradients(b, directions))  # fmt: skip
    return Trial(lambda: StandardModel(acquisition).fit(data), truth)


@row("ordinary", "standard model, linear encoding", n=100, n_quick=20)
def standard_model(n, rng):
    return _standard(n, rng, spherical=False)


@row("ordinary", "standard model, linear and spherical encoding", n=100, n_quick=20)
def standard_model_spherical(n, rng):
    return _standard(n, rng, spherical=True)


def _ivim(n, rng, b0_threshold):
    truth = {"perfusion_fraction": rng.uniform(0.05, 0.25, n), "D": rng.uniform(0.7, 1.5, n),
             "D_star": rng.uniform(8, 25, n)}  # fmt: skip
    data = magnitudes(ivim(1e-3 * _IVIM_B, **truth), 1 / _IVIM_SNR, rng)
    directions = np.tile([1.0, 0, 0], (len(_IVIM_B), 1))

    def gtab(threshold):
        options = {} if threshold is None else {"b0_threshold": threshold}
        return gradients(_IVIM_B, directions, **options)

    def peer(folder):
        if folder is None:
            return {}
        fit = IvimModel(gtab(0), fit_method="trr").fit(data)
        return {"DIPY": {"perfusion_fraction": fit.perfusion_fraction, "D": 1e3 * fit.D,
                         "D_star": 1e3 * fit.D_star}}  # fmt: skip

    return Trial(lambda: IVIMModel(gtab(b0_threshold)).fit(data), truth, peer=peer)


@row("ordinary", "IVIM, b 10, 20, 40 ..., SNR 50, threshold 0")
def ivim_threshold_0(n, rng):
    return _ivim(n, rng, 0)


@row("A2", "IVIM, the same b, DIPY's default threshold of gradient tables (50)")
def ivim_default_threshold(n, rng):
    return _ivim(n, rng, None)


def two_sticks(n, rng, angle, shells=((1000, 60),)):
    """Signals and axes of two sticks (.45 and .35) at an angle in a ball (.2)."""
    b, directions = table_of([(0, 8), *shells])
    frames, angle = rotations(n, rng), np.radians(angle)
    second = np.cos(angle) * frames[:, 0] + np.sin(angle) * frames[:, 1]
    axes = np.stack([frames[:, 0], second], axis=1)
    along = rng.uniform(1.5, 2.0, n)
    clean = 0.2 * ball(1e-3 * b, np.full(n, 3.0))
    for share, axis in zip((0.45, 0.35), axes.swapaxes(0, 1), strict=True):
        clean = clean + share * sticks(1e-3 * b, directions, axis, along)
    return gradients(b, directions), magnitudes(clean, 1 / SNR, rng), axes, along


def two_sticks_model(gtab):
    """Ball and two sticks of one diffusivity, with two axes."""
    stick = {"diffusivity": "diffusivity"}
    return compose(
        gtab,
        [
            Compartment("stick", "one", stick, axis="first"),
            Compartment("stick", "other", stick, axis="second"),
            Compartment("ball", "water", {"diffusivity": 3.0}),
        ],
        [Parameter("diffusivity", 0.5, 3.0, "mm^2/s")],
    )


def _two_sticks(n, rng, angle, *shells):
    gtab, data, axes, along = two_sticks(n, rng, angle, shells)
    truth = {"first fraction": np.full(n, 0.45), "second fraction": np.full(n, 0.35),
             "diffusivity": along}  # fmt: skip

    def cosines(fit):
        return np.abs(np.einsum("vik,vjk->vij", fit.axes[:, :2], axes))

    def maps(fit):
        swapped = np.einsum("vii->v", cosine := cosines(fit)) < cosine[:, [0, 1], [1, 0]].sum(
            axis=1
        )
        order = np.stack([swapped, ~swapped], axis=1).astype(int)
        ends = ("", "_low", "_high")
        shares = [np.take_along_axis(getattr(fit, f"fibre_fractions{e}"), order, axis=1)
                  for e in ends]  # fmt: skip
        found = {name: [each[:, k] for each in shares] for k, name in enumerate(list(truth)[:2])}
        return found | {"diffusivity": [1e3 * getattr(fit, f"diffusivity{e}") for e in ends]}

    def note(fit):
        cosine = cosines(fit)
        right = (cosine.max(axis=1) > np.cos(np.radians(10))).all(axis=1)
        return f"both axes within 10 degrees in {100 * right.mean():.0f} %"

    return Trial(lambda: two_sticks_model(gtab).fit(data), truth, maps, note)


@row("A4", "ball and two sticks crossing at 90 degrees, 60 directions at b 1000", n=200)
def crossing_90(n, rng):
    return _two_sticks(n, rng, 90, (1000, 60))


@row("A4", "ball and two sticks crossing at 60 degrees, 60 directions at b 1000", n=200)
def crossing_60(n, rng):
    return _two_sticks(n, rng, 60, (1000, 60))


@row("A4", "ball and two sticks crossing at 40 degrees, b 1000 and 3000", n=200)
def crossing_40(n, rng):
    return _two_sticks(n, rng, 40, (1000, 30), (3000, 60))


@row("A4", "peaks= on a model with two axes", n=5, n_quick=5)
def peaks_of_two_axes(n, rng):
    gtab, data, axes, _ = two_sticks(n, rng, 90)
    peaks = SimpleNamespace(peak_dirs=axes)
    return Trial(lambda: two_sticks_model(gtab).fit(data, peaks=peaks))


def strong_scheme():
    """b (s/mm^2), directions, delta and Delta (ms): 100 to 300 mT/m at two diffusion times."""
    gradient, big = (x.ravel() for x in np.meshgrid([0.1, 0.2, 0.3], [20.0, 40.0]))
    b = 1e3 * (GYROMAGNETIC_RATIO * gradient * 8.0) ** 2 * (big - 8.0 / 3)
    shells = [(0, 8), *((each, 24) for each in b.round(-1))]
    b, directions = table_of(shells)
    return b, directions, np.full(len(b), 8.0), np.r_[np.full(8, 20.0), np.repeat(big, 24)]


def _cylinders(n, rng, model_class, gap=0.0):
    b, directions, small, big = strong_scheme()
    axes, diameter = rotations(n, rng)[:, 0], rng.uniform(3, 10, n)
    tube = cylinders(1e-3 * b, small, big, directions, axes, diameter, 1.7)
    if model_class is ActiveAxModel:
        share, water, dot = rng.uniform(0.4, 0.8, n), rng.uniform(0, 0.15, n), 0.03
        fraction, outer = (1 - water - dot) * share, (1 - water - dot) * (1 - share)
        across, rest = 1.7 * (1 - share), water[:, None] * ball(1e-3 * b, np.full(n, 3.0))
    else:
        share, dot = rng.uniform(0.4, 0.8, n), 0.05
        fraction, outer = (1 - dot) * share, (1 - dot) * (1 - share)
        across, rest = rng.uniform(0.4, 1.0, n), 0.0
    square = (axes @ directions.T) ** 2
    around = np.exp(-1e-3 * b * (across[:, None] + (1.7 - across)[:, None] * square))
    clean = fraction[:, None] * tube + outer[:, None] * around + rest + dot
    data = magnitudes(clean, 1 / 50, rng)
    gtab = gradients(b, directions, small_delta=1e-3 * small, big_delta=1e-3 * (big - gap))
    truth = {"axon_diameter": diameter, "restricted_fraction": fraction}
    return Trial(lambda: model_class(gtab).fit(data), truth)


@row("ordinary", "ActiveAx, 100 to 300 mT/m, SNR 50")
def activeax(n, rng):
    return _cylinders(n, rng, ActiveAxModel)


@row("A11", "ActiveAx, Delta given as the gap between the pulses (8 ms too short)")
def activeax_gap(n, rng):
    return _cylinders(n, rng, ActiveAxModel, gap=8.0)


@row("ordinary", "ZCD, 100 to 300 mT/m, SNR 50")
def zcd(n, rng):
    return _cylinders(n, rng, ZCDModel)
