"""What a bar shows: voxels, also those of a chunk that is not finished."""

from __future__ import annotations

import re
import time

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
