"""False and true positive rates of `MISFIT`: voxels that a model explains, and others.

False positives: voxels simulated by NODDI, ActiveAx, ZCD and IVIM, from their priors. True
positives: tissue outside NODDI (crossing fibres, another diffusivity, signals that increase with
b), fitted by NODDI. Rician noise, known or unknown to the fit.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.misfit

Duration: about 3 min on 2 cores (--quick: 20 s). Writes results/misfit.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.prior_voxels import hcp_scheme, models, simulated
from benchmarks.tables import table
from dipy_spinverse import NODDIModel, Status

N_VOXELS, N_QUICK, SNR = 1000, 50, 30
_FIBRES = {"ndi": 0.6, "odi": 0.05, "fwf": 0.0}


def unknown_tissue(model: NODDIModel, n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Words and noise-free signals (n, M) of tissue that is not NODDI with one fibre."""
    axes = np.linalg.qr(np.random.default_rng(2).standard_normal((n, 3, 3)))[0]
    for number in (2, 3):
        parts = [model.signals({**_FIBRES, "axis": axes[:, k]}) for k in range(number)]
        yield f"{number} fibres at right angles", np.mean(parts, axis=0)
    for parallel in (1.9e-3, 2.2e-3, 2.6e-3):
        other = NODDIModel(model.acquisition, parallel_diffusivity=parallel)
        yield (
            f"parallel diffusivity {1e3 * parallel:.1f} um2/ms",
            other.signals(other.draw(n, seed=3)),
        )
    rising = 0.5 + 0.5 * model.acquisition.b / model.acquisition.b.max()
    yield "signals that rise with b", np.tile(rising, (n, 1))


def said(model, data: np.ndarray, sigma: float | None) -> str:
    """Percentage of voxels with the status MISFIT."""
    status = model.fit(data, sigma=sigma, n_draws=0).status
    return f"{100 * (status == Status.MISFIT).mean():.1f} %"


def main():
    """Print the tables and write them to results/."""
    quick = command(__doc__, f"{N_QUICK} voxels of each kind").parse_args().quick
    torch.set_num_threads(1)
    n = N_QUICK if quick else N_VOXELS
    heads, rows = ["", "SNR", "noise known", "noise unknown"], []
    for word, model, snr in models("float32"):
        data = simulated(model, n, snr)[1]
        rows.append([word, snr, said(model, data, 1 / snr), said(model, data, None)])
        print(rows[-1], flush=True)
    alarms, rows = table(heads, rows), []
    noddi = NODDIModel(hcp_scheme(), dtype="float32")
    rng = np.random.default_rng(4)
    for word, clean in unknown_tissue(noddi, n):
        noise = rng.standard_normal((2, *clean.shape)) / SNR
        data = np.hypot(clean + noise[0], noise[1])
        rows.append([word, SNR, said(noddi, data, 1 / SNR), said(noddi, data, None)])
        print(rows[-1], flush=True)
    text = (
        f"# Rates of MISFIT\n\n{n} voxels of each kind.\n\n"
        f"Voxels that the model explains (expected: 1 in 1000):\n\n{alarms}\n\n"
        f"Tissue outside NODDI with one fibre:\n\n{table(heads, rows)}"
    )
    print(text)
    keep("misfit.md", text, complete=not quick)


if __name__ == "__main__":
    main()
