"""What holds for any input at all: refused with a clear error, or fitted as promised."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from benchmarks.decay_model import ACQUISITION, DecayModel
from benchmarks.fuzz import judged
from benchmarks.hostile import Inputs
from benchmarks.hostile_commands import Commands
from dipy_spinverse import Acquisition, Status
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.image import wanted_voxels
from dipy_spinverse.voxels.status import FITTED

MODEL = DecayModel(ACQUISITION)
quickly = settings(max_examples=30, deadline=None, derandomize=True, database=None)
KINDS = st.sampled_from(["f8", ">f4", "f2", "i2", ">i4", "u1", "?"])
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=3, max_side=3)


@st.composite
def images(draw):
    """Signals of any type and size, some with NaN, infinities, zeros and negative samples."""
    shape = draw(SHAPES) + (len(ACQUISITION),)
    return draw(arrays_of.arrays(np.dtype(draw(KINDS)), shape))


@quickly
@given(images(), st.data())
def test_any_image_is_fitted_or_says_why_not_and_is_zero_elsewhere(data, more):
    mask = more.draw(arrays_of.arrays(np.bool_, data.shape[:-1]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        fit = MODEL.fit(data, mask, n_draws=0)
    assert fit.shape == data.shape[:-1]
    assert np.isin(fit.status, [*Status]).all()
    assert (fit.status[~mask] == Status.NOT_FITTED).all()
    assert (fit.status[mask] != Status.NOT_FITTED).all()
    bad = mask & ~np.isfinite(data.astype(float)).all(axis=-1)
    assert not np.isin(fit.status[bad], FITTED).any()
    for name in ("diffusivity", "S0_hat", "sigma"):
        assert not np.any(getattr(fit, name)[~np.isin(fit.status, FITTED)]), name


@quickly
@given(arrays_of.arrays(np.float64, (4, 3)))
def test_a_mask_is_of_whole_numbers_or_refused(mask):
    fractions = ~np.isnan(mask) & ((mask < 0) | (mask != np.round(mask)) | np.isinf(mask))
    if fractions.any():
        with pytest.raises(ValueError, match="^mask has .* values that are fractions"):
            wanted_voxels("mask", mask, mask.shape)
    else:
        inside = wanted_voxels("mask", mask, mask.shape)
        np.testing.assert_array_equal(inside.reshape(mask.shape), mask > 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@quickly
@given(st.dictionaries(st.text(), JSON, max_size=3), st.data())
def test_what_is_stored_is_read_as_it_was_or_not_at_all(tmp_path_factory, header, more):
    path = tmp_path_factory.mktemp("any") / "file.npz"
    kinds = st.sampled_from(["f8", ">f4", "i8", "?", "c16", "U3"])
    arrays = more.draw(
        st.dictionaries(
            st.sampled_from(["a", "b/c"]),
            kinds.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(max_side=3))),
        )
    )
    header = header | {"kind": "something"}
    storage.write(path, header, arrays)
    found = storage.read(path, "something")
    assert found[0] == header
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[1][name], value)
    content = bytearray(path.read_bytes())
    content[more.draw(st.integers(0, len(content) - 1))] ^= more.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        again = storage.read(path, "something")
    except ValueError:
        return
    assert storage.digest(*again) == storage.digest(*found)


@quickly
@given(st.text() | st.binary())
def test_any_text_is_a_table_of_gradients_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "any.bval"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (
            lambda: Acquisition.from_files(path, path, big_delta=0.03, small_delta=0.01),
            lambda: Acquisition.from_files(
                [0, 1000], np.eye(3)[:2], big_delta=path, small_delta=1
            ),
            lambda: Acquisition.from_scheme(path),
            lambda: Acquisition.from_bids(path),
        ):
            try:
                read()
            except ValueError as error:
                assert str(error)


@pytest.fixture(scope="module", params=[Inputs, Commands])
def hostile(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("hostile"))


def test_damaged_and_hostile_inputs_are_refused_by_the_package_itself(hostile, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    n_each = 12 if isinstance(hostile, Inputs) else 20
    for name, make in hostile.kinds.items():
        for seed in range(n_each):
            wrong = judged(lambda make=make, seed=seed: make(np.random.default_rng([9, seed])))
            assert not wrong, (name, seed, wrong)
