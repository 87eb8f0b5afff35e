"""Chunks of voxels computed in this process, or by several processes or machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from itertools import islice
from typing import Any

import cloudpickle
import joblib
from dipy.utils.multiproc import determine_num_processes
from threadpoolctl import ThreadpoolController

from dipy_spinverse.threads import torch_on_one_thread


def each_computed(
    function: Callable, chunks: Mapping[int, Callable[[], Any]], engine: str, n_jobs: int
) -> Iterator[tuple[int, Any]]:
    """Number and result of the function for each chunk, in the order in which they finish.

    `chunks` are functions that create a chunk, by number. Two chunks per process exist at a time,
    so that memory does not grow with the image. RuntimeError if a worker process dies.
    """
    if engine == "serial":
        for k, chunk in chunks.items():
            yield k, _on_one_thread(function, chunk())
        return
    computed = {"joblib": _by_joblib, "dask": _by_dask, "ray": _by_ray}[engine]
    yield from computed(cloudpickle.dumps(function), chunks, determine_num_processes(n_jobs))


@lru_cache(maxsize=1)
def _libraries():
    return ThreadpoolController()  # slow to create


def _on_one_thread(function, chunk):
    """The result with one thread in BLAS and torch, whose rounding depends on their number."""
    with _libraries().limit(limits=1, user_api="blas"), torch_on_one_thread():
        return function(chunk)


@lru_cache(maxsize=1)
def _unpickled(content):
    return cloudpickle.loads(content)


def _in_worker(content, k, chunk):
    return k, _on_one_thread(_unpickled(content), chunk)


def _by_joblib(content, chunks, n_workers, backend="loky", death=BrokenExecutor):
    tasks = (joblib.delayed(_in_worker)(content, k, chunk()) for k, chunk in chunks.items())
    with joblib.parallel_config(backend), _explained(death):
        yield from joblib.Parallel(
            n_workers, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs",
            max_nbytes=None,
        )(tasks)  # fmt: skip


def _by_ray(content, chunks, n_workers):
    import ray
    from ray.util.joblib.ray_backend import RayBackend

    class Backend(RayBackend):
        supports_return_generator = True  # works, but the class does not declare it

    joblib.register_parallel_backend("ray", Backend)
    local = {} if "RAY_ADDRESS" in os.environ else {
        "num_cpus": n_workers, "include_dashboard": False
    }  # fmt: skip
    session = nullcontext() if ray.is_initialized() else ray.init(log_to_driver=False, **local)
    with session:
        yield from _by_joblib(content, chunks, -1, "ray", ray.exceptions.RayActorError)


def _by_dask(content, chunks, n_workers):
    """Without joblib, whose dask backend waits forever for a chunk that kills its worker."""
    from distributed import Client, KilledWorker, LocalCluster, as_completed, get_client
    from distributed.client import CancelledError

    with ExitStack() as stack:
        try:
            client = get_client()
        except ValueError:
            cluster = LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=None
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        (pickled,) = client.scatter([content], broadcast=True, hash=False)
        tasks = (
            client.submit(_in_worker, pickled, k, chunk(), pure=False)
            for k, chunk in chunks.items()
        )
        # Cancelled: no worker with the function is left.
        stack.enter_context(_explained((KilledWorker, CancelledError)))
        running = as_completed(islice(tasks, 2 * sum(client.nthreads().values())))
        for future in running:
            yield future.result()
            running.update(islice(tasks, 1))


@contextmanager
def _explained(death):
    try:
        yield
    except death as error:
        raise RuntimeError(
            "engine: a worker process died, most likely because memory ran out. Start the same "
            "fit again, with fewer n_jobs if memory was short; with a journal it resumes from "
            "the voxels that are finished."
        ) from error
