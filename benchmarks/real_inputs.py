"""Inputs as people have them: ordinary scans, and the mistakes that are made with them.

Each row of the table is an image of voxels from textbook formulas or Monte Carlo, without code of
the package (`benchmarks.real_inputs_truths`), with noise, fitted as a user would, with an unknown
noise level. It states the warnings and the status of voxels, the median error of each map, its
mean absolute error and the coverage of its 95 % intervals, in all voxels and in those without a
flag, and that of 80 and 50 % intervals of the same samples. A voxel has a flag where its status
is MISFIT or NOT_CONVERGED, or where the map is prior dominated; all have one where the fit warns
(of these maps, where the warning names some; not of parameters that the acquisition hardly
determines: their intervals should be wide enough). SILENT is a map whose interval covers less
than 90 % of the truths, in all voxels and in those without a flag (and 95 % would give so few in
less than 1 % of images), or a mistake without a message; a call that is right to be accepted says
why instead.

    python -m benchmarks.real_inputs [--row NAME ...] [--cache FILE] [--limit SECONDS]

AMICO and DIPY's IVIM fit the same voxels, where they can be installed.

Duration: about 22 CPU-min (--quick: 5 min). Writes results/real_inputs.md.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.stats import binom

from benchmarks import (  # noqa: F401 -- they register their rows
    real_inputs_averages,
    real_inputs_cells,
    real_inputs_directions,
    real_inputs_messages,
)
from benchmarks.command import command, keep
from benchmarks.peers import FOLDER
from benchmarks.real_inputs_rows import ROWS, Row, Trial
from benchmarks.tables import machine, table
from dipy_spinverse import Status
from dipy_spinverse.voxels import statistics

_LEVEL, _LEAST, _CHANCE = 0.95, 0.90, 0.01
_FURTHER_LEVELS = 0.8, 0.5
_FLAGGED = (Status.MISFIT, Status.NOT_CONVERGED)
_N_WORDS = 24  # of a warning
_IN_MM2_PER_S = ("diffusivity", "extra_parallel", "extra_perpendicular", "D", "D_star")


def evaluated(row: Row, quick: bool, peers: Path | None) -> dict:
    """Figures of a row."""
    rng, started = np.random.default_rng(37), time.process_time()
    n = row.n_quick if quick else row.n
    trial = row.make(n, rng)
    prepared = time.process_time()
    result = {"item": row.item, "words": row.words, "n": n, "maps": {}, "note": ""}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = trial.run()
        except Exception as error:  # noqa: BLE001 -- which one it is, is the result
            outcome = None
            result["refused"] = f"refused: {type(error).__name__}: {error}"
    said = dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
    result["warnings"] = list(said)
    if isinstance(outcome, str):
        result["note"] = outcome
        explained = outcome != "accepted" or _about_errors(said)
        result["silent"] = [] if explained else ["no message"]
    elif outcome is not None:
        result |= _of_fit(outcome, trial, result["warnings"])
        result["coverage"] = [_coverage_at(level, trial) for level in _FURTHER_LEVELS]
        for name, estimates in trial.peer(peers).items():
            result.setdefault("peers", {})[name] = {
                m: _errors(e, trial.truth[m]) for m, e in estimates.items()
            }
    result["cpu"] = [round(prepared - started, 2), round(time.process_time() - prepared, 2)]
    return result


def _of_fit(fit, trial: Trial, said: list[str]) -> dict:
    status = np.asarray(fit.status).ravel()
    statuses = {Status(s).name: float((status == s).mean()) for s in np.unique(status)}
    maps, silent = {}, []
    for name, (middle, low, high) in _intervals(fit, trial).items():
        truth = trial.truth[name]
        covered = (low <= truth) & (truth <= high)
        flagged = np.isin(status, _FLAGGED) | _prior_dominated(fit, name, status.shape)
        flagged |= any(_concerns(text, name, trial.truth) for text in _about_errors(said))
        quiet = covered[~flagged]
        shares = [float(each.mean()) if each.size else None for each in (covered, quiet, flagged)]
        maps[name] = [*_errors(middle, truth), *shares]
        few = binom.cdf(quiet.sum(), quiet.size, _LEVEL) < _CHANCE
        if quiet.size and max(covered.mean(), quiet.mean()) < _LEAST and few:
            silent.append(name)
    return {"status": statuses, "maps": maps, "silent": silent, "note": trial.note(fit)}


def _coverage_at(level, trial):
    """Shares of the truths in intervals of another level, of each map: the same fit again."""
    with mock.patch.object(statistics, "_LEVEL", level), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        intervals = _intervals(trial.run(), trial)
    limits = ((trial.truth[name], low, high) for name, (_, low, high) in intervals.items())
    return [float(((low <= truth) & (truth <= high)).mean()) for truth, low, high in limits]


def _intervals(fit, trial):
    if trial.maps is not None:
        return trial.maps(fit)
    result = {}
    for name in trial.truth:
        scale = 1e3 if name.endswith(_IN_MM2_PER_S) else 1.0
        result[name] = [scale * getattr(fit, name + end).ravel() for end in ("", "_low", "_high")]
    return result


def _errors(estimate, truth):
    error = np.asarray(estimate, dtype=float) - truth
    return [float(np.median(error)), float(np.abs(error).mean())]


def _about_errors(said):
    """Warnings but those of single maps, of which `fit.prior_dominated` says the voxels."""
    own = ("hardly determines", "prior_dominated")
    return [text for text in said if not any(words in text for words in own)]


def _concerns(text, name, maps):
    """Whether a warning is about a map: one that names maps is about these, another about all."""
    named = set(re.findall(r"\w+", text)) & set(maps)
    return not named or name in named


def _prior_dominated(fit, name, shape):
    if name not in fit.MAPS:
        return np.zeros(shape, dtype=bool)
    return fit.prior_dominated(name).reshape(shape)


def line(result: dict) -> list[str]:
    """Cells of the table."""
    said = (result["refused"],) if "refused" in result else result["warnings"]
    message = [" ".join(text.split()[:_N_WORDS]) + " ..." for text in said]
    shares = result.get("status", {})
    message += [f"{name} {100 * share:.0f} %" for name, share in shares.items()]
    if result["note"]:
        message.append(result["note"])
    maps, silent = result["maps"], result.get("silent", ())
    cells = [" ".join(f"{m[k]:+.3g}" if k == 0 else f"{m[k]:.3g}" for m in maps.values())
             for k in (0, 1)]  # fmt: skip
    for name, peer in result.get("peers", {}).items():
        for k in (0, 1):
            numbers = " ".join(f"{peer[m][k]:+.3g}" if k == 0 else f"{peer[m][k]:.3g}"
                               for m in maps if m in peer)  # fmt: skip
            cells[k] += f"; {name} {numbers}"
    coverage = " ".join(f"{100 * m[2]:.0f}" for m in maps.values())
    quiet = " ".join("-" if m[3] is None else f"{100 * m[3]:.0f}" for m in maps.values())
    return [
        result["item"], result["words"], str(result["n"]), "; ".join(message).replace("|", "/"),
        ", ".join(maps), *cells, coverage, quiet,
        *(" ".join(f"{100 * share:.0f}" for share in shares)
          for shares in result.get("coverage", [()] * len(_FURTHER_LEVELS))),
        f"**SILENT**: {', '.join(silent)}" if silent else "",
    ]  # fmt: skip


def _order(name):
    item = ROWS[name].item
    return int(item[1:]) if item[1:].isdigit() else 0


HEADS = ["item", "mistake or ordinary input", "voxels", "message or status", "maps", "bias",
         "MAE", "coverage of 95 %", "without a flag", "of 80 %", "of 50 %", ""]  # fmt: skip


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, "30 to 50 voxels of each row, without peers")
    parser.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names of the rows")
    parser.add_argument("--cache", type=Path, help="rows in it are not computed again")
    parser.add_argument("--limit", type=float, default=np.inf, help="CPU-s; later rows are left")
    parser.add_argument("--peers", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {row.item}, {row.words}" for name, row in ROWS.items()))
        return
    torch.set_num_threads(1)
    stored = {}
    if options.cache and options.cache.exists():
        stored = json.loads(options.cache.read_text())
    peers = None if options.quick else options.peers
    for name in options.row:
        if name not in stored and time.process_time() < options.limit:
            stored[name] = evaluated(ROWS[name], options.quick, peers)
            print(name, *line(stored[name]), stored[name]["cpu"], sep=" | ", flush=True)
            if options.cache:
                options.cache.write_text(json.dumps(stored, indent=1))
    done = sorted((name for name in options.row if name in stored), key=_order)
    cpu = sum(sum(stored[name]["cpu"]) for name in done)
    text = (
        f"# Inputs as people have them\n\n`python -m benchmarks.real_inputs`\n\n{machine()}, "
        f"{cpu:.0f} CPU-s. Numbers are in the order of the maps; diffusivities in um^2/ms, "
        "diameters in um, times in ms.\n\n" + table(HEADS, [line(stored[name]) for name in done])
    )
    print(text)
    keep("real_inputs.md", text, complete=not options.quick and len(done) == len(ROWS))


if __name__ == "__main__":
    main()
