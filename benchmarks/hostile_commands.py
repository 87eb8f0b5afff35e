"""Command lines with wrong options, on damaged files; a part of `fuzz`."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.hostile import AFFINE, DATA, SHAPE, TWO_SHELLS, Inputs, damaged, one_of
from dipy_spinverse.workflows import cli

OUTSIDE = str(Path(tempfile.gettempdir()) / "written_by_fuzz.nii.gz")


class Commands:
    """Command lines, in a folder of which they may change only one subfolder."""

    KINDS = ("command line",)

    def __init__(self, folder: Path):
        self.folder, self.inner = folder, folder / "work"
        with tempfile.TemporaryDirectory() as name:
            inputs = Inputs(Path(name))
            read = {path.name: path.read_bytes() for path in Path(name).iterdir()}
            weighted = 100 * np.exp(-TWO_SHELLS.b) * np.ones((*SHAPE, 1))
            shells = inputs.stored("two.nii", nib.Nifti1Image(weighted, AFFINE))
            contrasts = inputs.stored("c.nii", nib.Nifti1Image(DATA[..., :2], AFFINE))
        echo = {"ScanningSequence": "GR", "RepetitionTime": 0.02, "EchoTime": 0.004}
        told = json.dumps([echo | {"FlipAngle": angle} for angle in (5, 20)]).encode()
        table = {"dwi.bval": read["dwi.bval"], "dwi.bvec": read["dwi.bvec"]}
        tables = {"dwi.bval": read["two.bval"], "dwi.bvec": read["two.bvec"]}
        weighted = {"dwi.nii.gz": inputs.contents["f4.nii.gz"], **table}
        mask = {"mask.nii": inputs.mask_content}
        fitted = {"--mask_file": "mask.nii", "--n_draws": 0}
        pulses = {"--big_delta": 0.03, "--small_delta": 0.01}
        # Positional files, other files, options.
        self.programs = {
            "dipy_fit_ivim_varpro": (weighted, mask, fitted | {"--b0_threshold": 0}),
            "dipy_fit_noddi": ({"dwi.nii": shells, **tables}, mask, fitted),
            "dipy_fit_tissue_fractions": (
                {"c.nii": contrasts}, mask | {"s.json": told, "s.yaml": told},
                fitted | {"--sequences_file": "s.json"},
            ),
            "dipy_check_acquisition": (tables, {}, pulses),
        }  # fmt: skip
        (folder / "thesis.txt").write_text("years of work")

    @property
    def kinds(self):
        """Function that generates and runs a command line, by kind."""
        return dict.fromkeys(self.KINDS, self.run)

    def run(self, rng):
        program = one_of(rng, [*self.programs])
        given, others, usual = self.programs[program]
        files = given | others
        if rng.random() < 0.7:
            name = one_of(rng, [*files])
            files[name] = damaged(rng, files[name])
        shutil.rmtree(self.inner, ignore_errors=True)
        self.inner.mkdir()
        for name, content in files.items():
            (self.inner / name).write_bytes(content)
        options = {
            name: self.inner / value if str(value) in files else value
            for name, value in usual.items()
        }
        options["--out_dir"] = self.inner / "out"
        asked = [*inspect.signature(cli.command(program).run).parameters]
        wrong = {name: x for name, x in self._wrong_options().items() if name[2:] in asked}
        for name in rng.choice([*wrong], min(rng.integers(3), len(wrong)), replace=False):
            options[name] = one_of(rng, wrong[name])
        words = [str(each) for pair in options.items() for each in pair] + ["--force"]
        sys.argv = [program, *(str(self.inner / name) for name in given), *words]
        before = self._contents()
        try:
            nowhere = io.StringIO()
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                cli.main()
        except SystemExit as error:
            said = str(error.code)
            assert error.code in (0, 2) or said.startswith(f"{program}: "), said
        finally:
            after = self._contents()
            changed = {path for path, content in before.items() if after.get(path) != content}
            added = {
                path for path in after.keys() - before.keys() if self.inner not in path.parents
            }
            assert not changed | added and not Path(OUTSIDE).exists(), changed

    def _wrong_options(self):
        """Values of options, most of them wrong."""
        inner = self.inner
        return {
            "--n_draws": [-1, 0, "x"], "--sigma": ["inf", "nan", -1, 0, 1], "--n_jobs": [0, "x"],
            "--out_S0": ["../../x.nii.gz", OUTSIDE, "status.nii.gz", "a/b.nii.gz"],
            "--out_dir": [inner, inner / "dwi.bval", inner / "out"],
            "--engine": ["none", "serial"],
            "--b0_threshold": ["nan", -5, 1e9], "--b1_error": ["nan", -1],
            "--constants_error": ["nan", -1, "inf"], "--smoothness": ["nan", "inf"],
            "--field": ["nan", 0, 7], "--parallel_diffusivity": ["nan", 0, -1, 1e300],
            "--isotropic_diffusivity": ["nan", "inf", 0], "--diffusivity": ["nan", 0, 1e300],
            "--likelihood": ["x", "gaussian"], "--dispersion": ["x"], "--seed": [-1, 2**70],
            "--te": ["nan", "1e300", inner / "dwi.bval"], "--isotropic": ["all", inner],
            "--journal": [inner / "dwi.bval", inner / "out" / "journal", inner / "journal"],
            "--mask_file": [inner / "none.nii.gz", inner / "dwi.nii.gz", inner],
            "--sequences_file": [inner / "s.yaml", inner / "mask.nii", inner],
            "--tissues_file": [inner / "s.json", inner / "s.yaml"],
            "--report": ["../page.html", OUTSIDE], "--unknown": ["b1", "x"],
            "--bids": [inner / "dwi.bval", inner / "derivatives"],
            "--big_delta": ["1e300", "nan", inner / "dwi.bval"], "--snr": ["nan", 0, 1e300],
        }  # fmt: skip

    def _contents(self):
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
