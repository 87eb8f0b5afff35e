"""Soma diameters that SANDI finds at one diffusion time where water crosses the membranes.

Signals of two exchanging pools, spheres and the water around them, and of sticks: Karger's
equations, in which the spheres lose signal at the constant rate that gives their attenuation in
the Gaussian phase approximation. They are fitted without noise at each diffusion time alone, and
the logarithm of the diameter is compared with that of the truth, and between diffusion times.

    python -m benchmarks.soma_exchange
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import expm

from benchmarks.command import keep
from benchmarks.real_inputs_truths import powder_sticks, restricted
from dipy_spinverse import Acquisition
from dipy_spinverse.compartments import SANDIModel

_B = np.r_[0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
_SMALL = 5.0
_BIG = (11.0, 19.0, 27.0, 35.0)  # ms, of the measured cortex
_TIMES = (5.0, 10.0, 20.0, 50.0)  # ms, of exchange in grey matter
_N = 40
_SD = 0.25  # of the logarithm, by which SANDI widens the interval at one diffusion time


def signals(big, time, diameter, fractions, along, extra):
    """Signals (M,) at one diffusion time; `fractions` of sticks, spheres and water around them."""
    q = np.sqrt(_B / (big - _SMALL / 3))
    same = np.full(len(_B), 1.0)
    inside = -np.log(restricted(q, _SMALL * same, big * same, np.array([diameter]), 3.0, 3)[0])
    sticks, somas, water = fractions
    leaving, entering = water / (somas + water) / time, somas / (somas + water) / time
    exchanging = [
        expm(
            big * np.array([[-leaving, entering], [leaving, -entering]])
            - np.diag([rate, b * extra])
        )
        @ [somas, water]
        for b, rate in zip(_B, inside, strict=True)
    ]  # fmt: skip
    return sticks * powder_sticks(_B, np.array([along]))[0] + np.sum(exchanging, axis=1)


def main() -> None:
    """Print and write the table."""
    rng = np.random.default_rng(0)
    tissues = [
        (
            rng.uniform(8, 20),
            rng.dirichlet([6, 5, 5]),
            rng.uniform(1.5, 2.8),
            rng.uniform(0.6, 1.6),
        )
        for _ in range(_N)
    ]
    truth = np.log([tissue[0] for tissue in tissues])
    lines = [
        "| exchange time, ms | Delta, ms | mean of log(diameter / truth) | sd |",
        "| --- | --- | --- | --- |",
    ]
    errors = []
    for time in (*_TIMES, np.inf):
        of_time = []
        for big in _BIG:
            acquisition = Acquisition(_B, np.zeros((len(_B), 3)), _SMALL, big, isotropic=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = SANDIModel(acquisition, likelihood="gaussian")
                data = np.array([signals(big, time, *tissue) for tissue in tissues])
                fit = model.fit(data, sigma=2e-3, n_draws=0)
            of_time.append(np.log(fit.soma_diameter) - truth)
            error = of_time[-1]
            lines.append(f"| {time:g} | {big:g} | {error.mean():+.2f} | {error.std():.2f} |")
        if np.isfinite(time):
            errors.append(of_time)
    e = np.array(errors)
    lines += [
        "",
        f"Root mean square at exchange times of {_TIMES[0]:g} to {_TIMES[-1]:g} ms: "
        f"{np.sqrt((e**2).mean()):.2f}; median absolute {np.median(abs(e)):.2f}; 95 % of all "
        f"between {np.quantile(e, 0.025):+.2f} and {np.quantile(e, 0.975):+.2f}; "
        f"{100 * (abs(e) < 1.96 * _SD).mean():.0f} % within 1.96 x {_SD}.",
    ]
    print("\n".join(lines))
    keep("soma_exchange.md", "\n".join(lines), complete=True)


if __name__ == "__main__":
    main()
