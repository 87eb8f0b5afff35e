"""Damaged, absurd and hostile inputs: none may crash, hang, write elsewhere or run code.

    python -m benchmarks.fuzz [-n 100000] [--seed 0]

Duration: about 4 CPU-minutes for 10,000 inputs (--quick: 300 inputs, 20 s). Writes
results/fuzz.md.

An input is refused when the package itself raises ValueError, OSError or MemoryError with a
message; any other error, one that comes out of a library, and CPU times over 20 s are failures.
Peak memory of the process is printed, and every file that appears outside of the folder that a
command is given.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import meshio
import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.decay_model import ACQUISITION, DecayModel, decays
from benchmarks.tables import table
from dipy_spinverse import Acquisition, IVIMModel, load_fit, read_grid
from dipy_spinverse.acquisition.waveform_files import read_pulseq, read_text_waveforms
from dipy_spinverse.tissue_fractions import sequence_from
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.image_files import StoredImage, mask_of
from dipy_spinverse.workflows import cli

N, N_QUICK = 10_000, 300
LONGEST_S = 20.0
_COMMAND_EACH = 100  # inputs of which one is a command line, which takes as long as all others
SHAPE, AFFINE = (3, 2, 2), np.diag([2.0, 2.0, 2.0, 1.0])
DATA = decays(SHAPE)
MODEL = DecayModel(ACQUISITION)
MESHES = ("vtu", "vtk", "msh", "mesh", "xdmf", "inp", "med", "bdf", "su2", "avs", "ugrid", "xml")
OURS = (ValueError, OSError, MemoryError, ImportError)
NUMBERS = [
    0, -1, 1, 7, 0.5, -0.0, 1e-300, 1e300, np.nan, np.inf, -np.inf, 10**18, 2**63, 10**400,
    10**5000, 1j, True, None, "", "1", "abc", [], {}, [[1], [1, 2]], [1, "x"], b"1", object(),
    np.array(3), np.zeros((0, 3)), np.ones(13), np.arange(12) > 5, np.float16(1), set(),
]  # fmt: skip
TEXTS = [
    "", "\n", "nan", "1e400", "1 2 3\n4 5", "\0" * 100, "[" * 100_000, '{"a":' * 50_000,
    "9" * 5000, '{"BigDelta": [[]]}', '{"SmallDelta": {"a": 1}, "BigDelta": 0.03}', "VERSION: 7",
    "VERSION: 1\n1 0 0 nan 0.03 0.01 0.05", "1,2;3", "\u00e9\u4e2d", "true", "null", "[null]",
    '{"ScanningSequence": 3}', '{"type": "__import__"}', '[{"type": "MPRAGE", "ti": 1e400}]',
    "1 0 0\n" * 4, "# Pulseq\n[VERSION]\nmajor x", "!!python/object/apply:os.system ['true']",
]  # fmt: skip


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """The same file cut off, with other bytes, with a part gone, or something else."""
    changed = bytearray(content)
    kind = rng.integers(6)
    if kind == 0:
        return bytes(changed[: rng.integers(len(changed) + 1)])
    if kind == 1:
        for _ in range(rng.integers(1, 8)):
            changed[rng.integers(len(changed))] = rng.integers(256)
    elif kind == 2:
        at = rng.integers(len(changed))
        changed[at:at] = bytes(rng.choice(list(b"0123456789-.e \n<>$[]{}"), rng.integers(1, 12)))
    elif kind == 3:
        first, last = sorted(rng.integers(len(changed), size=2))
        del changed[first:last]
    elif kind == 4:
        changed[: rng.integers(1, 400)] = rng.bytes(int(rng.integers(1, 400)))
    else:
        return rng.choice(TEXTS).encode()
    return bytes(changed)


def one_of(rng, values):
    return values[rng.integers(len(values))]


class Inputs:
    """What can be made wrong, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.kinds = {
            "image file": self.image, "mask file": self.mask, "text files": self.text,
            "mesh": self.mesh, "saved fit": self.saved, "altered fit": self.altered,
            "arrays of a fit": self.arrays, "acquisition": self.acquisition,
            "gradient table": self.gtab, "journal": self.journal, "sequence": self.sequence,
        }  # fmt: skip
        self.images = {
            f"{name}{end}": nib.Nifti1Image(values, AFFINE)
            for end in (".nii", ".nii.gz")
            for name, values in {
                "f4": DATA.astype("f4"), "big-endian": DATA.astype(">i2"), "f8": DATA,
                "complex": DATA + 0j, "f4-4d-mask": np.ones((*SHAPE, 1), "f4"),
            }.items()
        }  # fmt: skip
        self.contents = {name: self._bytes(name, image) for name, image in self.images.items()}
        self.mask_content = self._bytes("m.nii", nib.Nifti1Image(np.ones(SHAPE, "u1"), AFFINE))
        points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1.0]])
        cells = {"tetra": np.array([[0, 1, 2, 3], [1, 2, 3, 4]])}
        self.meshes = {}
        for end in MESHES:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                meshio.write_points_cells(folder / f"m.{end}", points, cells)
                self.meshes[end] = (folder / f"m.{end}").read_bytes()
        fit = IVIMModel(ACQUISITION).fit(DATA[:1], sigma=1.0, n_draws=0)
        fit.save(folder / "fit.npz")
        self.fit = (folder / "fit.npz").read_bytes()
        np.savetxt(folder / "dwi.bval", ACQUISITION.b[None] * 1000)
        np.savetxt(folder / "dwi.bvec", ACQUISITION.directions.T)

    def _bytes(self, name, image):
        nib.save(image, self.folder / name)
        return (self.folder / name).read_bytes()

    def _put(self, name, content):
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def image(self, rng):
        name = one_of(rng, [*self.contents])
        end = ".nii.gz" if name.endswith("gz") else ".nii"
        path = self._put(f"x{end}", damaged(rng, self.contents[name]))
        stored = StoredImage(path, "input_files")
        stored.check_real()
        MODEL.fit(stored, n_draws=0)

    def mask(self, rng):
        path = self._put("y.nii", damaged(rng, self.mask_content))
        mask_of(path, (SHAPE, AFFINE), "mask_file")

    def text(self, rng):
        texts = [
            b"1000 0 0 1000",
            b"1 0 0\n0 1 0\n0 0 1",
            b"VERSION: 1\n1 0 0 0.1 0.03 0.01 0.08",
            b'{"BigDelta": 0.03, "SmallDelta": 0.01, "EchoTime": 0.08}',
            b"0 0 0\n1 0 0\n0 0 0",
        ]
        path = self._put("t.txt", damaged(rng, one_of(rng, texts)))
        other = self._put("u.bval", damaged(rng, texts[0]))
        self._put("s.bvec", texts[1]), self._put("s.bval", texts[0])
        self._put("s.json", damaged(rng, texts[3]))
        readers = [
            lambda: Acquisition.from_files(other, path, big_delta=0.03, small_delta=0.01),
            lambda: Acquisition.from_files(self.folder / "dwi.bval", self.folder / "dwi.bvec",
                                           big_delta=str(path), small_delta="0.01"),
            lambda: Acquisition.from_scheme(path),
            lambda: Acquisition.from_bids(self.folder / "s.json"),
            lambda: read_text_waveforms(path, path, b=[1.0], duration_before=9, duration_after=9,
                                        pause=8),
            lambda: read_pulseq(path),
        ]  # fmt: skip
        one_of(rng, readers)()

    def mesh(self, rng):
        end = one_of(rng, [*self.meshes])
        read_grid(self._put(f"x.{end}", damaged(rng, self.meshes[end])))

    def saved(self, rng):
        load_fit(self._put("x.npz", damaged(rng, self.fit))).predict()

    def altered(self, rng):
        """Arrays and settings of another kind, some with the checksum that belongs to them."""
        with np.load(io.BytesIO(self.fit)) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
        name = one_of(rng, [*arrays])
        value, kind = arrays[name], rng.integers(6)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            arrays[name] = value[..., :-1] if value.ndim else np.array([value, value])
        elif kind == 2:
            arrays[name] = value.astype(one_of(rng, ["S3", "c16", "f2", "u1", "?"]))
        elif kind == 3:
            arrays[name] = np.full_like(value, one_of(rng, [0, 1, 99]))
        elif kind == 4:
            arrays[name] = np.full(value.shape, np.nan)
        else:
            key = one_of(rng, [*header["settings"], "new"])
            header["settings"][key] = one_of(rng, [None, -1, "x", [], {}, 1e300])
        if rng.random() < 0.5:
            header.pop("checksum", None)
            header["checksum"] = storage.digest(header, arrays)
        path = self.folder / "z.npz"
        np.savez(path, header=np.array(json.dumps(header)), **arrays)
        load_fit(path)

    def arrays(self, rng):
        data = one_of(rng, [DATA, DATA[0, 0, 0], DATA[:, 0, 0], one_of(rng, NUMBERS)])
        if isinstance(data, np.ndarray) and data.ndim and data.size:
            data = np.array(data, dtype=one_of(rng, ["f8", ">f4", "f2", "i2", "c8", "U9", "O"]))
            if data.dtype.kind == "f" and rng.random() < 0.5:
                data.flat[rng.integers(data.size)] = one_of(rng, [np.nan, np.inf, -1e4, 0, 6e4])
            data = one_of(rng, [data, np.asfortranarray(data), data[::-1], data[..., :-1]])
        shape = np.shape(data)[:-1] if isinstance(data, np.ndarray) else ()
        names = ("mask", "sigma", "n_draws", "vox_per_chunk", "n_jobs", "engine", "max_memory")
        options = {name: one_of(rng, NUMBERS) for name in rng.choice(names, rng.integers(3))}
        if rng.random() < 0.5:
            options["mask"] = rng.random(shape) > rng.random()
        MODEL.fit(data, **options)

    def acquisition(self, rng):
        usual = {"b": ACQUISITION.b, "directions": ACQUISITION.directions, "small_delta": 10.0,
                 "big_delta": 30.0}  # fmt: skip
        names = (*usual, "te", "mixing_time", "isotropic", "b0_threshold")
        changed = {name: one_of(rng, NUMBERS) for name in rng.choice(names, rng.integers(1, 3))}
        acquisition = Acquisition(**(usual | changed))
        DecayModel(acquisition).fit(DATA[..., : len(acquisition)], n_draws=0)

    def gtab(self, rng):
        usual = {"big_delta": 0.03, "small_delta": 0.01}
        gtab = gradient_table(ACQUISITION.b * 1000, bvecs=ACQUISITION.directions, **usual)
        for name in rng.choice(["big_delta", "small_delta", "btens"], rng.integers(1, 3)):
            setattr(gtab, name, one_of(rng, NUMBERS))
        te = one_of(rng, [None, 0.08, one_of(rng, NUMBERS)])
        Acquisition.from_gtab(gtab, te=te, mixing_time=one_of(rng, [None, one_of(rng, NUMBERS)]))

    def journal(self, rng):
        folder = self.folder / "journal"
        options = {"n_draws": 0, "vox_per_chunk": 5, "journal": folder}
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            options["journal"] = Path(name)
            expected = MODEL.fit(DATA, **options)
            for path in Path(name).iterdir():
                if rng.random() < 0.5:
                    path.write_bytes(damaged(rng, path.read_bytes()))
            again = MODEL.fit(DATA, **options)
            same = (again.diffusivity == expected.diffusivity).all()
            assert same, "another result from a damaged journal"

    def sequence(self, rng):
        usual = {"ScanningSequence": "GR", "RepetitionTime": 0.02, "EchoTime": 0.004,
                 "FlipAngle": 12}  # fmt: skip
        changed = {name: one_of(rng, NUMBERS) for name in rng.choice([*usual], 2)}
        sequence_from(one_of(rng, [usual | changed, one_of(rng, NUMBERS), {"type": "MPRAGE"}]))


class Commands(Inputs):
    """The command line, in a folder in which only `out` may change."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.kinds = {"command line": self.run}

    def run(self, rng):
        inner = self.folder / "work"
        inner.mkdir(exist_ok=True)
        names = {"dwi.nii.gz": self.contents["f4.nii.gz"], "mask.nii.gz": self.mask_content,
                 "dwi.bval": (self.folder / "dwi.bval").read_bytes(),
                 "dwi.bvec": (self.folder / "dwi.bvec").read_bytes()}  # fmt: skip
        if rng.random() < 0.5:
            name = one_of(rng, [*names])
            names[name] = damaged(rng, names[name])
        for name, content in names.items():
            (inner / name).write_bytes(content)
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        options = {"--mask_file": inner / "mask.nii.gz", "--b0_threshold": 0, "--n_draws": 0,
                   "--out_dir": inner / "out"}  # fmt: skip
        more = {"--n_draws": [-1, 0, "x"], "--sigma": ["inf", "nan", -1, 0, 1], "--out_S0": [
            "../../x.nii.gz", "/tmp/spinverse_fuzz.nii.gz", "status.nii.gz", "a/b.nii.gz"],
            "--out_dir": [inner, inner / "dwi.bval", inner / "out"], "--n_jobs": [0, "x"],
            "--engine": ["none", "serial"], "--vox_per_chunk": [0, -1, 1], "--b0_threshold":
            ["nan", -5, 1e9], "--journal": [inner / "dwi.bval", inner / "out" / "journal"],
            "--mask_file": [inner / "none.nii.gz", inner / "dwi.nii.gz", inner],
        }  # fmt: skip
        for name in rng.choice([*more], rng.integers(3), replace=False):
            options[name] = one_of(rng, more[name])
        words = [str(each) for pair in options.items() for each in pair] + ["--force"]
        files = [str(inner / name) for name in ("dwi.nii.gz", "dwi.bval", "dwi.bvec")]
        sys.argv = ["dipy_fit_ivim_varpro", *files, *words]
        try:
            with contextlib.redirect_stdout(io.StringIO()), _quiet():
                cli.main()
        except SystemExit as error:
            said = str(error.code)
            assert error.code == 2 or said.startswith("dipy_fit_ivim_varpro: "), said
        finally:
            changed = {path for path, was in before.items() if not path.exists()
                       or path.read_bytes() != was}  # fmt: skip
            added = {path for path in self.folder.rglob("*") if path.is_file()} - before.keys()
            outside = changed | {path for path in added if inner not in path.parents}
            assert not outside and not Path("/tmp/spinverse_fuzz.nii.gz").exists(), outside


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def judged(call) -> str:
    """ "" for an input that was taken or refused, else what went wrong."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except OURS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = "dipy_spinverse" in last.filename and (last.line or "").startswith("raise")
        if not (ours and str(error)):
            return f"{type(error).__name__} at {Path(last.filename).name}: {str(error)[:70]}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error!s:.70}"
    except SystemExit as error:
        return f"exit {error}"
    if time.process_time() - start > LONGEST_S:
        return f"{time.process_time() - start:.0f} s of CPU time"
    return ""


def fuzz(n: int, seed: int, kinds=None):
    """Number of inputs and failures of each kind."""
    counts, failures = Counter(), Counter()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        inputs, commands = Inputs(Path(one)), Commands(Path(other))
        wanted = [name for name in inputs.kinds if kinds is None or name in kinds]
        for k in range(n):
            rng = np.random.default_rng([seed, k])
            last = (k % _COMMAND_EACH == 0 or not wanted) and (
                kinds is None or "command line" in kinds
            )
            name = "command line" if last else wanted[k % len(wanted)]
            make = commands.kinds[name] if last else inputs.kinds[name]
            counts[name] += 1
            wrong = judged(lambda make=make, rng=rng: make(rng))
            if wrong:
                failures[name, wrong] += 1
            if k % 500 == 499:
                print(f"{k + 1} inputs, {sum(failures.values())} failures", flush=True)
    return counts, failures


def main():
    parser = command(__doc__, quick=f"{N_QUICK} inputs")
    parser.add_argument("-n", type=int, default=N, help=f"number of inputs ({N})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="some kinds of inputs alone")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    n = N_QUICK if arguments.quick else arguments.n
    start = time.process_time()
    counts, failures = fuzz(n, arguments.seed, arguments.kinds)
    bad = Counter()
    for (name, _), count in failures.items():
        bad[name] += count
    lines = [
        table(("kind of input", "inputs", "failures"),
              [(name, count, bad[name]) for name, count in counts.items()]),
        "",
        f"{sum(counts.values())} inputs, {sum(bad.values())} failures, "
        f"{time.process_time() - start:.0f} CPU-s, peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB.",
        *(f"{count} x {name}: {wrong}" for (name, wrong), count in failures.most_common()),
    ]  # fmt: skip
    text = "\n".join([f"# Inputs that nothing right can come from\n\n{__doc__.strip()}\n", *lines])
    print(*lines, sep="\n")
    keep("fuzz.md", text, complete=not (arguments.quick or arguments.kinds))


if __name__ == "__main__":
    main()
