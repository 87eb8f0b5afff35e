"""Chunks of voxels in this process, or in others on this machine or on those of a cluster."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from dipy.utils.multiproc import determine_num_processes
from threadpoolctl import ThreadpoolController

from dipy_spinverse.threads import torch_on_one_thread

# How often a chunk is begun again that took its process with it.
_REPEATS = 3
# Chunks under way for each process: one that it computes, one that it can begin with at once.
_UNDER_WAY = 2


@dataclass(frozen=True)
class _Pool:
    """Where chunks are computed: what begins with one, and how many processes there are now."""

    submit: Callable[[Any], Future]
    n_processes: Callable[[], int]


def each_computed(
    function: Callable, chunks: Iterable[tuple[int, Any]], engine: str, n_jobs: int
) -> Iterator[tuple[int, Any]]:
    """Results of a function of each chunk with its number, as soon as they are there.

    Chunks are taken as they are needed, some for each process. The function goes to each process
    once. Where a process dies, its chunk is computed again.

    Parameters
    ----------
    function : callable
    chunks : iterable of (int, chunk)
    engine : {"serial", "joblib", "dask", "ray"}
    n_jobs : int

    Raises
    ------
    RuntimeError
        A chunk that takes each process with it.
    """
    if engine == "serial":
        libraries = ThreadpoolController()
        for k, chunk in chunks:
            # Sums of BLAS and torch are rounded differently by each number of threads.
            with libraries.limit(limits=1, user_api="blas"), torch_on_one_thread():
                result = function(chunk)
            yield k, result
        return
    with _POOLS[engine](function, n_jobs) as pool:
        yield from _as_finished(pool, iter(chunks))


def _as_finished(pool, chunks):
    waiting: dict[Future, tuple[int, Any]] = {}
    begun = Counter()

    def begin(k, chunk):
        begun[k] += 1
        waiting[pool.submit(chunk)] = k, chunk

    try:
        while True:
            while len(waiting) < _UNDER_WAY * max(pool.n_processes(), 1):
                following = next(chunks, None)
                if following is None:
                    break
                begin(*following)
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                k, chunk = waiting.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor as error:
                    if begun[k] > _REPEATS:
                        raise RuntimeError(
                            f"engine: a process died {begun[k]} times at the same voxels, most "
                            "likely for want of memory; give fewer n_jobs."
                        ) from error
                    begin(k, chunk)
                else:
                    yield k, result
    finally:
        for future in waiting:
            future.cancel()


@lru_cache(maxsize=1)
def _libraries():
    """Those that have threads; to find them takes as long as to fit some voxels."""
    return ThreadpoolController()


def _on_one_thread(function, chunk):
    """A chunk on one thread, as other workers have the other cores."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1):
            return function(chunk)
    finally:  # a worker may be a thread of this process
        torch.set_num_threads(n_threads)


@lru_cache(maxsize=2)
def _stored(path):
    """The function in a file, read once in each process."""
    import cloudpickle

    return cloudpickle.loads(Path(path).read_bytes())


def _by_file(path, chunk):
    return _on_one_thread(_stored(path), chunk)


@contextmanager
def _joblib(function, n_jobs):
    """Processes of joblib, which stay for the next fit."""
    import cloudpickle
    from joblib.externals.loky import get_reusable_executor

    n = determine_num_processes(n_jobs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "function"
        path.write_bytes(cloudpickle.dumps(function))
        # Asked for anew each time: a broken one is replaced.
        yield _Pool(lambda chunk: get_reusable_executor(n).submit(_by_file, path, chunk),
                    lambda: n)  # fmt: skip


@contextmanager
def _dask(function, n_jobs):
    """Workers of the present client of dask, or local ones of its own."""
    from distributed import Client, get_client

    try:
        client, own = get_client(), False
    except ValueError:
        n = determine_num_processes(n_jobs)
        client, own = Client(n_workers=n, threads_per_worker=1, dashboard_address=None), True
    try:
        (there,) = client.scatter([function], broadcast=True, hash=False)
        executor = client.get_executor(pure=False)
        yield _Pool(lambda chunk: executor.submit(_on_one_thread, there, chunk),
                    lambda: sum(client.nthreads().values()))  # fmt: skip
    finally:
        if own:
            client.close()
            client.cluster.close()


@contextmanager
def _ray(function, n_jobs):
    """Workers of the present cluster of ray, or local ones of its own."""
    import ray

    own = not ray.is_initialized()
    if own:
        local = {"num_cpus": determine_num_processes(n_jobs), "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    try:
        there = ray.put(function)
        task = ray.remote(num_cpus=1, max_retries=_REPEATS)(_on_one_thread)
        yield _Pool(lambda chunk: task.remote(there, chunk).future(),
                    lambda: int(ray.cluster_resources().get("CPU", 1)))  # fmt: skip
    finally:
        if own:
            ray.shutdown()


_POOLS = {"joblib": _joblib, "dask": _dask, "ray": _ray}
