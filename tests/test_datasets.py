"""Measured data are fetched once, checked, and kept; without a network the message helps."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from dipy_spinverse import datasets

CONTENT = b"1 2 3\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A data set with one file, in a folder instead of the network."""
    there = tmp_path / "source"
    there.mkdir()
    (there / "a.txt").write_bytes(CONTENT)
    known = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    described = {"what": "numbers", "url": there.as_uri(), "files": {"a.txt": known}}
    monkeypatch.setattr(datasets, "manifest", lambda: {"numbers": described})
    monkeypatch.setenv(datasets.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    return there


def fetched():
    files, folder = datasets._fetched("numbers", ["a.txt"])
    return files["a.txt"], folder


def test_a_file_is_fetched_once_and_kept(source, tmp_path):
    path, folder = fetched()
    assert path.read_bytes() == CONTENT and folder == tmp_path / "kept" / "numbers"
    (source / "a.txt").unlink()
    assert fetched()[0].read_bytes() == CONTENT


def test_without_a_network_the_message_says_where_the_file_goes(source, tmp_path):
    (source / "a.txt").unlink()
    with pytest.raises(OSError, match="copy the file there, or set DIPY_SPINVERSE_DATA") as error:
        fetched()
    assert str(tmp_path / "kept" / "numbers" / "a.txt") in str(error.value)


@pytest.mark.parametrize("where", ["source", "kept"])
def test_another_file_is_refused_and_not_kept(source, tmp_path, where):
    kept = tmp_path / "kept" / "numbers" / "a.txt"
    if where == "source":
        (source / "a.txt").write_bytes(b"other")
    else:
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"other")
    with pytest.raises(ValueError, match="not the expected file"):
        fetched()
    assert where == "kept" or not list(kept.parent.glob("*"))


def test_a_full_disk_is_not_a_missing_network(source, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="was fetched, but cannot be written .No space") as error:
        fetched()
    assert error.value.errno == errno.ENOSPC and "cannot be fetched" not in str(error.value)
    assert list((tmp_path / "kept" / "numbers").iterdir()) == []


def test_benchmarks_refuse_another_file(tmp_path, monkeypatch):
    benchmarks = pytest.importorskip("benchmarks.datasets")
    monkeypatch.setenv(datasets.ENVIRONMENT_VARIABLE, str(tmp_path))
    (tmp_path / "isbi2015").mkdir()
    (tmp_path / "isbi2015" / "genu.txt").write_bytes(b"other")
    with pytest.raises(SystemExit, match="genu.txt is not the expected .* in vivo human genu"):
        benchmarks.data_file("isbi2015/genu.txt")


def test_without_a_folder_of_its_own_data_lie_beside_those_of_dipy(source, tmp_path, monkeypatch):
    monkeypatch.delenv(datasets.ENVIRONMENT_VARIABLE)
    monkeypatch.setattr(datasets, "dipy_home", str(tmp_path / "dipy"))
    assert fetched()[1] == tmp_path / "dipy" / "dipy_spinverse" / "numbers"


def test_every_file_that_is_read_is_in_the_list():
    listed = datasets.manifest()
    for name in (*datasets._CAT, *datasets._HISTOLOGY.values()):
        assert name in listed["duval_cat"]["files"]
    for name in ("isbi_schemefile.txt", "genu.txt", "fornix.txt"):
        assert name in listed["isbi2015"]["files"]
    assert all(each["url"].startswith("https://") for each in listed.values())
    assert Path(datasets.__file__).with_name("datasets.toml").is_file()


def test_an_unknown_region_is_named():
    with pytest.raises(ValueError, match="region is 'cortex'"):
        datasets.read_isbi2015("cortex")
