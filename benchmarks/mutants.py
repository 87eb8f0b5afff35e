"""Single wrong changes of the package: how many do its tests notice?

    python -m benchmarks.mutants FOLDER [--mutants 320] [--seed 1]

Duration: 20 CPU-min to record which functions each test calls, and 12 CPU-s a mutant. Works on a
clone of the latest commit in FOLDER, where an interrupted run continues. Writes
results/mutants.md (noticed of tried) and results/mutants.json (the survivors).

A mutant meets the tests of the fast suite that call the changed function, of five files, the quick
ones first, up to a time limit; those of a constant or compiled function are all that call the
module. One that exceeds the limit has survived.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

import numpy as np
import pytest

from benchmarks.command import command, keep
from benchmarks.mutations import mutants_of
from benchmarks.tables import table

PACKAGE, KEY = "dipy_spinverse", ("path", "line", "old", "new")
# CPU-seconds of all tests of a mutant, and of one test, of which few of the fast suite take more
# than 5; seconds that a test can wait.
LIMIT_S, TEST_LIMIT_S, WAIT_S = 24, 40, 300
MAX_FILES = 5  # those that import the module first, then those with most tests that call it
# Imported once, before the forks.
WARM = (
    "torch", "numba", "scipy.optimize", "scipy.stats", "scipy.sparse.linalg", "skimage.measure",
    "dipy.data", "dipy.core.gradients", "dipy.workflows.workflow", "nibabel", "joblib", "meshio",
    "matplotlib.pyplot", "hypothesis", "sklearn.neural_network", "plotly.graph_objects",
)  # fmt: skip


class Recorder:
    """Plugin: the functions of the package that each test calls, and how long it takes."""

    def __init__(self):
        self.called, self.seconds, self.failed = defaultdict(set), defaultdict(float), set()
        self.context, self.root = "", f"{Path.cwd()}/"
        sys.settrace(self.trace)

    def trace(self, frame, event, argument):
        name, function = frame.f_code.co_filename, frame.f_code.co_qualname
        if name.startswith(self.root + PACKAGE):
            where = f"{name.removeprefix(self.root)}:{function.partition('.<locals>')[0]}"
            self.called[self.context].add(where)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.context = item.nodeid
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        test = self.context
        if fixturedef.scope != "function":  # for all tests of the file
            self.context = test.partition("::")[0]
        try:
            return (yield)
        finally:
            self.context = test

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        self.failed |= {report.nodeid} if report.failed else set()

    def record(self):
        sys.settrace(None)
        called = {context: sorted(functions) for context, functions in self.called.items()}
        seconds = {test: s for test, s in self.seconds.items() if test not in self.failed}
        return {"called": called, "seconds": seconds}


class Runner:
    """Plugin: the order of the tests of a mutant, and their time limits."""

    def __init__(self, seconds, callers, limit):
        self.seconds, self.callers, self.end = seconds, callers, time.process_time() + limit

    def calls(self, item):
        return bool({item.nodeid, item.nodeid.partition("::")[0]} & self.callers)

    def pytest_collection_modifyitems(self, items):
        items[:] = [i for i in items if i.nodeid in self.seconds and self.calls(i)]
        items.sort(key=lambda item: self.seconds[item.nodeid])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        signal.alarm(WAIT_S)  # ends the process, as does the next: an endless loop is noticed
        signal.setitimer(signal.ITIMER_PROF, TEST_LIMIT_S)
        return True if time.process_time() > self.end else None


def run_tests(files, new_plugin, *options, record=None):
    """Exit status of pytest in a fork of this process."""
    process = os.fork()
    if process == 0:
        os.setsid()
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]
        log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        plugin = new_plugin()
        no_plugins = "-p", "no:cacheprovider", "-p", "no:xdist"
        status = pytest.main([*no_plugins, *options, *files], plugins=[plugin])
        if record:
            record.write_text(json.dumps(plugin.record()))
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        os.killpg(process, signal.SIGKILL)  # processes that a test has left
    except ProcessLookupError:
        pass
    return status


def outcome(mutant, seconds, called):
    """Whether a mutant is noticed, survives, or is called by no test."""
    path = Path(mutant["path"])
    source, where = path.read_text(), f"{path}:{mutant['function']}"
    compiled = "njit" in source  # its calls are not recorded, and callers have copies in the cache
    callers = {caller for caller, names in called.items() if where in names}
    if compiled or not callers:  # or a constant
        callers |= {c for c, names in called.items() if any(f"{path}:" in name for name in names)}
    count = Counter(caller.partition("::")[0] for caller in callers - {""})
    module = f"{path.with_suffix('')}".replace("/", ".")
    files = sorted(count, key=lambda f: (module not in Path(f).read_text(), -count[f]))[:MAX_FILES]
    cached = Path(cache_from_source(path))
    limit = LIMIT_S * (3 if compiled else 1)  # with the time of compilers
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"NUMBA_CACHE_DIR": empty} if compiled else {}
        try:
            path.write_text(mutant["source"])
            cached.unlink(missing_ok=True)
            status = (
                run_tests(files, lambda: Runner(seconds, callers, limit), "-x") if files else 0
            )
        finally:
            path.write_text(source)
            cached.unlink(missing_ok=True)
            os.environ.pop("NUMBA_CACHE_DIR", None)
    return "noticed" if status not in (0, 5) else "survived" if files else "unreached"


def sample(n, seed):
    """Mutants: as many of each package, and of each kind within a package."""
    rng = np.random.default_rng(seed)
    packages = defaultdict(lambda: defaultdict(list))
    for path in sorted(Path(PACKAGE).rglob("*.py")):
        for mutant in mutants_of(path):
            packages[path.parts[1]][mutant["kind"]].append(mutant)
    packages = {name: kinds for name, kinds in packages.items() if not name.endswith(".py")}
    for k in range(n):
        name = list(packages)[k % len(packages)]
        kinds = list(packages[name].values())
        kind = kinds[k // len(packages) % len(kinds)]
        yield kind.pop(rng.integers(len(kind)))


def main():
    parser = command(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if not (folder / "tree").exists():
        subprocess.run(["git", "clone", "-q", ".", folder / "tree"], check=True)
    os.chdir(folder / "tree")
    subprocess.run(["git", "checkout", "-q", "."], check=True)  # of an interrupted run
    os.environ["PYTHONPATH"] = sys.path[0] = str(folder / "tree")
    for name in WARM:
        import_module(name)
    called, seconds = defaultdict(set), {}
    for file in [*sorted(map(str, Path("tests").glob("test_*.py"))), PACKAGE]:
        record = folder / f"{Path(file).stem}.json"
        if not record.exists():
            run_tests([file], Recorder, record=record)
        content = json.loads(record.read_text())
        seconds |= content["seconds"]
        for caller, names in content["called"].items():
            called[caller] |= set(names)
    results = folder / "outcomes.json"
    outcomes = json.loads(results.read_text()) if results.exists() else []
    known = {tuple(mutant[key] for key in KEY) for mutant in outcomes}
    for mutant in sample(arguments.mutants, arguments.seed):
        if tuple(mutant[key] for key in KEY) in known:
            continue
        start = time.monotonic()
        mutant["outcome"] = outcome(mutant, seconds, called)
        del mutant["source"]
        outcomes.append(mutant | {"seconds": round(time.monotonic() - start, 1)})
        results.write_text(json.dumps(outcomes, indent=1))
    rows = []
    for package in sorted({mutant["path"].split("/")[1] for mutant in outcomes}):
        own = [m["outcome"] for m in outcomes if m["path"].split("/")[1] == package]
        share = own.count("noticed") / len(own)
        rows.append([package, own.count("noticed"), len(own), f"{100 * share:.0f} %"])
    text = table(["package", "noticed", "tried", "share"], rows)
    print(text)
    survivors = [mutant for mutant in outcomes if mutant["outcome"] != "noticed"]
    complete = len(outcomes) >= arguments.mutants
    keep("mutants.md", text, complete=complete)
    keep("mutants.json", json.dumps(survivors, indent=1), complete=complete)


if __name__ == "__main__":
    main()
