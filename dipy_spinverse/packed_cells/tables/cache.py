"""Signal tables by acquisition: kept in memory and in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.tables.signal_table import (
    SignalTable,
    TableSetting,
    build_signal_table,
)

logger = logging.getLogger("dipy_spinverse")

# Change with anything that changes the content of a table.
_VERSION = 1
# Tables that are kept there.
_IN_MEMORY = 16
_ARRAYS = ("timings", "q_max", "coefficients", "error_modes", "error_growth")
_recent: OrderedDict[str, SignalTable] = OrderedDict()


def cached_table(shape: str, acquisition: Acquisition, diffusivity: float) -> SignalTable:
    """Table for the timings and largest q of an acquisition, built where it is not at hand.

    Tables are kept in ``$XDG_CACHE_HOME/dipy_spinverse`` (``~/.cache/dipy_spinverse``), if that
    can be written. Building one takes minutes, once.

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
    acquisition : Acquisition
    diffusivity : float
        um^2/ms.

    Returns
    -------
    SignalTable
    """
    setting = TableSetting(shape, *encoding_range(acquisition), diffusivity)
    key = _key(setting)
    if key not in _recent:
        path = cache_folder() / f"signal_table_{key}.npz"
        table = _read(path, shape)
        if table is None:
            # A warning, to be seen by default: the first fit would seem to hang.
            logger.warning(
                "Simulating packed %ss for %d new timings, about a minute for each; kept in %s.",
                shape, len(setting.timings), path.parent,
            )  # fmt: skip
            table = build_signal_table(setting)
            _write(path, table)
        _recent[key] = table
        if len(_recent) > _IN_MEMORY:
            _recent.popitem(last=False)
    _recent.move_to_end(key)
    return _recent[key]


def prepare_tables(acquisition: Acquisition, diffusivity: float) -> None:
    """Build the tables of an acquisition where they are not at hand yet."""
    for shape in ("cylinder", "sphere"):
        cached_table(shape, acquisition, diffusivity)


def encoding_range(acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (delta, Delta) (T, 2) of weighted measurements, and the largest q of each (T,)."""
    weighted = ~acquisition.b0_mask
    pulses = np.stack([acquisition.small_delta, acquisition.big_delta], axis=1)[weighted]
    timings, index = np.unique(np.round(pulses, 4), axis=0, return_inverse=True)
    q_max = np.zeros(len(timings))
    np.maximum.at(q_max, index.ravel(), acquisition.q[weighted])
    # Room for the rounding of q; the same table for almost the same protocol.
    return timings, np.ceil(q_max * 1.001 * 1e3) / 1e3


def cache_folder() -> Path:
    """Where tables are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dipy_spinverse"


def _key(setting):
    numbers = setting.timings.ravel(), setting.q_max, [setting.diffusivity, _VERSION]
    content = np.concatenate(numbers).round(6).astype("<f8").tobytes()
    return hashlib.sha256(setting.shape.encode() + content).hexdigest()[:24]


def _read(path, shape):
    """The table of a file, or None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises almost anything
        logger.warning("%s is damaged (%s): building it again", path, error)
        return None
    return SignalTable(shape=shape, **{k: np.ascontiguousarray(v) for k, v in arrays.items()})


def _write(path, table):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **{name: getattr(table, name) for name in _ARRAYS})
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        logger.info("tables are not kept: %s", error)
