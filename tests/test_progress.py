"""What a bar shows: voxels, also those of a chunk that is not finished."""

from __future__ import annotations

import re
import time

import numba
import numpy as np
import pytest

from dipy_spinverse.voxels import progress
from dipy_spinverse.voxels.progress import Bar, part, report_progress, stepwise


def slowly(voxels):
    """Half of a chunk, a pause, the rest."""
    report_progress(0.5)
    time.sleep(3 * progress._INTERVAL)
    return voxels


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_INTERVAL", 0.02)
    monkeypatch.setattr(progress, "_SHORT", 0.05)


def test_a_bar_shows_voxels_of_a_chunk_that_is_not_finished(capfd, quick):
    with Bar(40, verbose=True) as bar:
        bar.fed_by(slowly)(np.arange(40))
        bar.finished(40)
    shown = [int(n) for n in re.findall(r"(\d+)/40", capfd.readouterr().err)]
    assert 20 in shown and shown[-1] == 40


def test_voxels_of_a_journal_count_beside_those_that_are_computed(capfd, quick):
    with Bar(60, verbose=True) as bar:
        bar.found(20)
        bar.fed_by(slowly)(np.arange(40))
        bar.finished(40)
    shown = [int(n) for n in re.findall(r"(\d+)/60", capfd.readouterr().err)]
    assert 40 in shown and shown[-1] == 60


def compiles(voxels):
    """A function that numba compiles in this call, in 0.1 s or more."""
    numba.njit(lambda x: np.sort(x) + x.sum())(np.zeros(3))
    time.sleep(5 * progress._INTERVAL)
    return voxels


def test_a_bar_says_so_while_functions_are_compiled_and_not_afterwards(capfd, quick):
    with Bar(40, verbose=True) as bar:
        bar.fed_by(compiles)(np.arange(40))
        bar.finished(40)
    shown = capfd.readouterr().err
    assert "compiling (first run only)" in shown
    assert "compiling" not in shown.rpartition("\r")[2]


def test_a_step_is_named_with_its_seconds_unless_it_is_short(capfd, quick, monkeypatch):
    for least, seen in ((0.05, True), (10.0, False)):
        monkeypatch.setattr(progress, "_SHORT", least)
        for verbose in (True, False):
            with progress.waiting("writing maps", verbose):
                time.sleep(0.2)
            shown = capfd.readouterr().err
            assert ("writing maps ... 00:00" in shown) == (seen and verbose)


def test_without_a_bar_nothing_is_printed_and_the_function_is_the_same(capfd):
    with Bar(40, verbose=False) as bar:
        assert bar.fed_by(slowly) is slowly
        bar.finished(40)
    assert capfd.readouterr().err == ""


def test_steps_within_steps_add_up_to_the_whole():
    told = []
    with progress._with_listener(told.append):
        with part(0.0, 0.5):
            for _ in stepwise(range(2)):
                report_progress(0.5)
        with part(0.5, 1.0):
            report_progress(0.5)
    assert told == [0.125, 0.25, 0.375, 0.5, 0.5, 0.75, 1.0]


def test_what_computes_may_tell_where_nobody_listens():
    seen = []
    for item in stepwise([1, 2]):
        report_progress(0.5)
        seen.append(item)
    assert seen == [1, 2]
