"""What an installed package promises: it imports anywhere, and its files are all there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dipy_spinverse

PACKAGE = Path(dipy_spinverse.__file__).parent
ROOT = PACKAGE.parent


def test_it_imports_where_neither_package_nor_home_can_be_written(tmp_path):
    copy = tmp_path / "site" / "dipy_spinverse"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()  # a file: no folder can be made, not even by root
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "HOME": "/dev/null",
                   "TMPDIR": str(tmp_path)}  # fmt: skip
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        environment.pop(name, None)
    code = (
        "import dipy_spinverse, numpy; print(dipy_spinverse.__file__)\n"
        "from dipy_spinverse.bloch_torrey.finite_elements.sweep import link_products"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert str(copy) in done.stdout
    (kept,) = tmp_path.glob("dipy_spinverse_*")
    assert kept.stat().st_mode & 0o077 == 0  # what is in it is run


def test_it_imports_for_a_user_without_home_and_without_an_entry_in_passwd(tmp_path):
    code = (
        "import os, pathlib; os.environ.pop('HOME', None)\n"
        "os.path.expanduser = lambda path: path  # as where the user is unknown\n"
        "import dipy_spinverse._compiled_cache as cache; cache._writable = lambda folder: False\n"
        "cache.ensure_cache()"
    )
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}  # fmt: skip
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("dipy_spinverse_*"))


def test_files_that_are_no_code_are_named_for_the_wheel():
    named = (ROOT / "setup.cfg").read_text().split("[options.package_data]")[1].split("[")[0]
    others = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".nbc", ".nbi")
    }
    missing = {path for path in others if path not in named}
    assert not missing


def test_what_a_report_needs_is_an_extra():
    assert {"plotly", "jinja2"} <= {
        line.split(";")[0].strip() for line in requires("dipy_spinverse") if "report" in line
    }


def test_horizon_starts_with_the_viewer_of_the_extra_viz():
    """`dipy_horizon` of DIPY 1.12 fails on FURY 2, for which it was not written."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options.extras_require"]["viz"].split("\n")
    (fury,) = (Requirement(line) for line in lines if line.startswith("fury"))
    assert "0.12.0" in fury.specifier and "2.0.0" not in fury.specifier
    pytest.importorskip("fury")
    program = Path(sys.executable).with_name("dipy_horizon")
    done = subprocess.run([program, "-h"], capture_output=True, text=True)
    assert done.returncode == 0 and "input_files" in done.stdout, done.stderr
