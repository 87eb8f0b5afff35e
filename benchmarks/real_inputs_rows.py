"""Rows of `benchmarks.real_inputs`: voxels of a truth, the model that fits them, and mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_PEERLESS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Trial:
    """An image with its truth, or a call whose message counts.

    Attributes
    ----------
    run : callable
        Makes the model and the fit; returns the fit, or a text of a call.
    truth : mapping of ndarray (V,)
        By map; diffusivities in um^2/ms.
    maps : callable, optional
        From the fit, (estimate, low, high) of each map of `truth`; `fit.NAME` by default.
    note : callable
        From the fit, what else the table says.
    peer : callable
        From the folder of peers, estimates of the same voxels by peer and map.
    """

    run: Callable[[], Any]
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: Callable[[Any], dict] | None = None
    note: Callable[[Any], str] = lambda fit: ""
    peer: Callable[[Path | None], Mapping] = lambda folder: _PEERLESS


@dataclass(frozen=True)
class Row:
    """A line of the table: `make` takes a number of voxels and a generator of random numbers."""

    item: str
    words: str
    make: Callable[[int, np.random.Generator], Trial]
    n: int
    n_quick: int

    @property
    def name(self) -> str:
        """Name on the command line."""
        return self.make.__name__


ROWS: dict[str, Row] = {}


def row(item: str, words: str, n: int = 300, n_quick: int = 40):
    """Register a function as a row of the table."""

    def register(make):
        ROWS[make.__name__] = Row(item, words, make, n, n_quick)
        return make

    return register


def call(function: Callable[[], Any]) -> Trial:
    """A row that is a message: the text of what is accepted, or the error."""

    def run():
        accepted = function()
        return accepted if isinstance(accepted, str) else "accepted"

    return Trial(run)


def middle_interval(name: str, scale: float = 1.0) -> Callable[[Any], str]:
    """Note: median over voxels of a map and of the limits of its interval."""

    def note(fit):
        low, middle, high = (scale * np.median(getattr(fit, name + end))
                             for end in ("_low", "", "_high"))  # fmt: skip
        return f"median {name} {middle:.3g} ({low:.3g} to {high:.3g})"

    return note
