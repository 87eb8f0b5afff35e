"""Invalid inputs, damaged at random; tested by `fuzz`."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import ClassVar
from unittest import mock

import meshio
import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table

from benchmarks.decay_model import ACQUISITION, DecayModel, InSmallBlocks, decays
from dipy_spinverse import Acquisition, IVIMModel, LearnedModel, NODDIModel, load_fit, read_grid
from dipy_spinverse.acquisition.waveform_files import read_pulseq, read_text_waveforms
from dipy_spinverse.grid import mesh_files
from dipy_spinverse.tissue_fractions import sequence_from
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.image_files import StoredImage, mask_of

SHAPE, AFFINE = (3, 2, 2), np.diag([2.0, 2.0, 2.0, 1.0])
DATA = decays(SHAPE)
_SPREAD = np.random.default_rng(0).standard_normal((25, 3))
TWO_SHELLS = Acquisition(
    b=np.repeat([0.0, 0.7, 2.0], [1, 12, 12]), small_delta=10, big_delta=30,
    directions=_SPREAD / np.linalg.norm(_SPREAD, axis=1, keepdims=True),
)  # fmt: skip
MODEL = DecayModel(ACQUISITION)
# Readers of damaged meshes that never end are stopped after so many seconds, instead of 10.
LONGEST_MESH_S = 0.2
MESHES = ("vtu", "vtk", "msh", "mesh", "xdmf", "inp", "med", "bdf", "su2", "avs", "ugrid", "xml")
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
    """The same file truncated, with changed bytes, with a part missing, or replaced."""
    changed = bytearray(content)
    kind = rng.integers(6) if content else 5
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


class Code:
    """Runs where a pickle of it is read."""

    def __init__(self, scar: Path):
        self.scar = scar

    def __reduce__(self):
        return Path.touch, (self.scar,)


class Inputs:
    """Inputs to be damaged, in a separate folder."""

    KINDS: ClassVar[dict[str, str]] = {
        "image file": "image", "header of an image": "header", "mask file": "mask",
        "text files": "text", "mesh": "mesh", "saved fit": "saved", "altered fit": "altered",
        "archive": "archive", "network file": "network", "arrays of a fit": "arrays",
        "extreme image": "extreme", "acquisition": "acquisition", "gradient table": "gtab",
        "journal": "journal", "sequence": "sequence",
    }  # fmt: skip

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = {
            f"{name}{end}": nib.Nifti1Image(values, AFFINE)
            for end in (".nii", ".nii.gz")
            for name, values in {
                "f4": DATA.astype("f4"), "big-endian": DATA.astype(">i2"), "f8": DATA,
                "scaled": (DATA * 100).astype("i2"), "complex": DATA + 0j,
                "f4-4d-mask": np.ones((*SHAPE, 1), "f4"),
            }.items()
        }  # fmt: skip
        for name in ("scaled.nii", "scaled.nii.gz"):
            self.images[name].header.set_slope_inter(0.01, 3.0)
        self.contents = {name: self.stored(name, image) for name, image in self.images.items()}
        self.raw = {
            name: gzip.decompress(content) if name.endswith("gz") else content
            for name, content in self.contents.items()
        }
        burst = io.BytesIO()
        with zipfile.ZipFile(burst, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.npy", b"\0" * 2**22)
        self.burst = burst.getvalue()
        self.mask_content = self.stored("m.nii", nib.Nifti1Image(np.ones(SHAPE, "u1"), AFFINE))
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
        self.two_shells = NODDIModel(TWO_SHELLS)
        training = {"n_train": 200, "max_epochs": 1, "width": 4, "depth": 1}
        learned = LearnedModel(self.two_shells, snr=(20, 50), **training)
        learned.save(folder / "network.npz")
        self.network_content = (folder / "network.npz").read_bytes()
        scan = gradient_table(TWO_SHELLS.b * 1000, bvecs=TWO_SHELLS.directions)
        np.savetxt(folder / "two.bval", scan.bvals[None])
        np.savetxt(folder / "two.bvec", scan.bvecs.T)
        np.savetxt(folder / "dwi.bval", ACQUISITION.b[None] * 1000)
        np.savetxt(folder / "dwi.bvec", ACQUISITION.directions.T)

    @property
    def kinds(self):
        """Function that generates and reads an input, by kind."""
        return {name: getattr(self, method) for name, method in self.KINDS.items()}

    def stored(self, name, image):
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

    def header(self, rng):
        """Header fields with wrong sizes, scales and positions."""
        name = one_of(rng, ["f4.nii", "f4.nii.gz", "big-endian.nii", "scaled.nii"])
        image = nib.Nifti1Image(self.images[name].get_fdata(), AFFINE)
        fields = image.header.copy().structarr
        for _ in range(rng.integers(1, 4)):
            key, values = one_of(rng, [
                ("dim", [0, -1, 1, 2, 8, 32767]), ("datatype", [0, 1, 2, 4, 16, 64, 128, 99]),
                ("scl_slope", [0, np.nan, np.inf, 1e30, -1]), ("scl_inter", [np.nan, 1e30, -1e4]),
                ("vox_offset", [0, 1e9, -1, np.nan]), ("pixdim", [0, -1, np.nan]),
                ("srow_x", [0, np.nan, 1e30]), ("qform_code", [-1, 0, 99]), ("bitpix", [0, 1, 64]),
                ("sform_code", [-1, 0, 99]), ("sizeof_hdr", [0, 540]), ("magic", [b"", b"ni1"]),
            ])  # fmt: skip
            flat = fields[key].reshape(-1) if fields[key].ndim else fields[key][None]
            flat[rng.integers(flat.size)] = one_of(rng, values)
            fields[key] = flat.reshape(fields[key].shape)
        content = fields.tobytes() + self.raw[name][348:]
        end = ".nii.gz" if name.endswith("gz") else ".nii"
        path = self._put(f"h{end}", gzip.compress(content, 1) if end == ".nii.gz" else content)
        stored = StoredImage(path, "input_files")
        stored.check_real()
        MODEL.fit(stored, sigma=1.0, n_draws=0)

    def extreme(self, rng):
        """One voxel or none, one measurement or thousands, any type and layout."""
        n = int(one_of(rng, [1, 2, 3, 50, 10_000]))
        b = one_of(rng, [np.linspace(0, 3, n), np.arange(n) % 4, np.full(n, 1e4), np.zeros(n)])
        directions = np.tile(np.eye(3), (n // 3 + 1, 1))[:n]
        acquisition = Acquisition(b=b, directions=directions, small_delta=10, big_delta=30)
        shape = one_of(rng, [(), (1,), (2, 1), (1, 1, 1), (0,), (3, 0, 2)])
        size = one_of(rng, [100, 1e-30, 1e30, 1e300])
        with np.errstate(all="ignore"):
            data = np.broadcast_to(size * np.exp(-b), (*shape, n))
            data = data.astype(one_of(rng, ["f8", ">f4", "f2", "i1", "u8", "g", "?", ">i4"]))
        layout = rng.integers(4)
        if layout == 0 and data.size:
            mapped = np.memmap(self.folder / "mapped", data.dtype, "w+", shape=data.shape)
            mapped[:] = data
            data = mapped
        elif layout == 1:
            data = np.repeat(data, 2, axis=-1)[..., ::2]
        elif layout == 2:
            data = np.asfortranarray(data)
        sigma = one_of(rng, [None, 1.0, 1e-300, 1e300])
        DecayModel(acquisition).fit(data, sigma=sigma, n_draws=0)

    def archive(self, rng):
        """Archives that burst, and such as run code where they are unpickled."""
        path, scar = self.folder / "b.npz", self.folder / "scar"
        with np.load(io.BytesIO(self.fit)) as stored:
            arrays = dict(stored)
        name = one_of(rng, [*arrays])
        if rng.random() < 0.5:
            arrays[name] = np.array([Code(scar)], dtype=object)
            np.savez(path, **arrays)
        else:
            content = bytearray(self.burst if rng.random() < 0.2 else self.fit)
            at = content.rfind(b"PK\x01\x02")  # size of a member, as the archive's list has it
            struct.pack_into("<I", content, at + 24, int(rng.integers(2**32 - 1)))
            path.write_bytes(content)
        try:
            load_fit(path)
        finally:
            assert not scar.exists(), "code was run"

    def network(self, rng):
        with np.load(io.BytesIO(self.network_content)) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
        name, kind = one_of(rng, [*arrays]), rng.integers(5)
        content = self.network_content
        if kind == 0:
            content = damaged(rng, content)
        elif kind == 1:
            arrays[name] = np.full_like(arrays[name], one_of(rng, [np.nan, np.inf, 1e300]))
        elif kind == 2:
            arrays[name] = arrays[name][..., :-1] if arrays[name].ndim else np.zeros(3)
        elif kind == 3:
            del arrays[name]
        else:
            key = one_of(rng, [*header, "new"])
            header[key] = one_of(rng, [None, -1, "x", [], {}, 1e300])
        if kind > 0:
            header.pop("checksum", None)
            header["checksum"] = storage.digest(header, arrays)
            memory = io.BytesIO()
            np.savez(memory, header=np.array(json.dumps(header)), **arrays)
            content = memory.getvalue()
        LearnedModel.load(self._put("n.npz", content), self.two_shells)

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
        path = self._put(f"x.{end}", damaged(rng, self.meshes[end]))
        with mock.patch.object(mesh_files, "_LONGEST_S", LONGEST_MESH_S):
            read_grid(path)

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
        names = ("mask", "sigma", "n_draws", "n_jobs", "engine", "max_memory")
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
        options = {"sigma": 1.0, "n_draws": 0}
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            options["journal"] = Path(name)
            model = InSmallBlocks(ACQUISITION)
            expected = model.fit(DATA, **options)
            for path in Path(name).iterdir():
                if rng.random() < 0.5:
                    path.write_bytes(damaged(rng, path.read_bytes()))
            again = model.fit(DATA, **options)
            same = (again.diffusivity == expected.diffusivity).all()
            assert same, "another result from a damaged journal"

    def sequence(self, rng):
        usual = {"ScanningSequence": "GR", "RepetitionTime": 0.02, "EchoTime": 0.004,
                 "FlipAngle": 12}  # fmt: skip
        changed = {name: one_of(rng, NUMBERS) for name in rng.choice([*usual], 2)}
        sequence_from(one_of(rng, [usual | changed, one_of(rng, NUMBERS), {"type": "MPRAGE"}]))
