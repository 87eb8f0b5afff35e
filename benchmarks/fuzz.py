"""Damaged, implausible and malicious inputs: none may crash, hang, write elsewhere or run code.

    python -m benchmarks.fuzz [-n 10000] [--seed 0] [--checkpoint FILE]

Duration: about 3 CPU-minutes for 10,000 inputs (--quick: 300 inputs, 20 s). Writes
results/fuzz.md.

An input is refused when the package itself raises ValueError, OSError or MemoryError with a
message; any other error, an error raised by a library, the end of the process and CPU times over
20 s are failures, and so is a file outside the folder of a command. Inputs are tested in batches,
each in a separate process, whose peak memory is printed. A run with a checkpoint resumes after an
interruption. Readers of damaged meshes that do not terminate are stopped after 0.2 s here, instead
of 10 s.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.hostile import Inputs
from benchmarks.hostile_commands import Commands
from benchmarks.tables import table

N, N_QUICK = 10_000, 300
BATCH = 2500
COMMAND_EACH = 100  # inputs of which one is a command line, which takes as long as 50 others
LONGEST_S = 20.0
OURS = (ValueError, OSError, MemoryError, ImportError)


def judged(call) -> str:
    """ "" for an input that was accepted or refused, else a description of the failure."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except OURS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = "dipy_spinverse" in last.filename and (last.line or "").startswith("raise")
        if not (ours and str(error)):
            return f"{type(error).__name__} at {Path(last.filename).name}: {str(error)[:70]}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error!s:.70}"
    except SystemExit as error:
        return f"exit {error}"
    if time.process_time() - start > LONGEST_S:
        return f"{time.process_time() - start:.0f} s of CPU time"
    return ""


def turns_of(kinds: list[str]) -> list[str]:
    """Kinds in turn, command lines last and rarely."""
    others = [name for name in kinds if name in Inputs.KINDS]
    some = [others[k % len(others)] for k in range(COMMAND_EACH - 1)] if others else []
    return some + [name for name in kinds if name in Commands.KINDS]


def batch(first: int, last: int, seed: int, wanted: list[str]) -> dict:
    """Number of inputs and failures of each kind, CPU seconds and peak of memory."""
    logging.disable(logging.CRITICAL)
    start, found = time.process_time(), []
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        makers = Inputs(Path(one)).kinds | Commands(Path(other)).kinds
        turns = turns_of(wanted)
        for k in range(first, last):
            name = turns[k % len(turns)]
            rng = np.random.default_rng([seed, k])
            counts[name] += 1
            wrong = judged(lambda make=makers[name], rng=rng: make(rng))
            if wrong:
                found.append((name, wrong, k))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"done": last, "counts": counts, "failures": found,
            "seconds": time.process_time() - start, "peak": peak}  # fmt: skip


def fuzz(n: int, seed: int, wanted: list[str], checkpoint: Path | None = None) -> dict:
    """Combined results of batches."""
    total: dict = {"done": 0, "counts": {}, "failures": [], "seconds": 0.0, "peak": 0.0}
    if checkpoint is not None and checkpoint.exists():
        total = json.loads(checkpoint.read_text())
    while total["done"] < n:
        first, last = total["done"], min(total["done"] + BATCH, n)
        with ProcessPoolExecutor(1, get_context("fork")) as process:
            try:
                found = process.submit(batch, first, last, seed, wanted).result()
            except BrokenProcessPool:
                lost = [("a batch", "the process died", first)]
                found = {"done": last, "counts": {}, "failures": lost, "seconds": 0, "peak": 0}
        total["done"], total["failures"] = last, total["failures"] + found["failures"]
        total["counts"] = dict(Counter(total["counts"]) + Counter(found["counts"]))
        total["seconds"] += found["seconds"]
        total["peak"] = max(total["peak"], found["peak"])
        print(f"{last} inputs, {len(total['failures'])} failures, {total['seconds']:.0f} CPU-s",
              flush=True)  # fmt: skip
        if checkpoint is not None:
            written = checkpoint.with_suffix(".new")
            written.write_text(json.dumps(total))
            os.replace(written, checkpoint)
    return total


def main():
    kinds = [*Inputs.KINDS, *Commands.KINDS]
    parser = command(__doc__, quick=f"{N_QUICK} inputs")
    parser.add_argument("-n", type=int, default=N, help=f"number of inputs ({N})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=kinds, help="only these kinds of inputs")
    parser.add_argument("--checkpoint", type=Path, help="file from which a run resumes")
    arguments = parser.parse_args()
    n = N_QUICK if arguments.quick else arguments.n
    total = fuzz(n, arguments.seed, arguments.kinds, arguments.checkpoint)
    bad = Counter(name for name, _, _ in total["failures"])
    again = Counter((name, wrong) for name, wrong, _ in total["failures"])
    lines = [
        table(("kind of input", "inputs", "failures"),
              [(name, count, bad[name]) for name, count in total["counts"].items()]),
        "",
        f"{sum(total['counts'].values())} inputs, {len(total['failures'])} failures, "
        f"{total['seconds']:.0f} CPU-s, peak memory {total['peak']:.2f} GiB.",
        *(f"{count} x {name}: {wrong}" for (name, wrong), count in again.most_common()),
    ]  # fmt: skip
    text = "\n".join([f"# Invalid inputs\n\n{__doc__.strip()}\n", *lines])
    print(*lines, sep="\n")
    keep("fuzz.md", text, complete=not arguments.quick and arguments.kinds == kinds)


if __name__ == "__main__":
    main()
