"""Custom kernels and models with a mistake are refused at construction, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compartment_cases import two_shells

from dipy_spinverse import NODDIModel
from dipy_spinverse.compartments import Compartment, CustomKernel, Parameter, compose


def ball(diffusivity=3.0, pool="water", **options):
    return Compartment("ball", pool, {"diffusivity": diffusivity}, **options)


def decay(encoding, square, *, diffusivity):
    return torch.exp(-encoding.b[:, None] * diffusivity[:, None, None] * square)


def custom(signal):
    kernel = CustomKernel("own", ("diffusivity",), signal)
    return [Compartment(kernel, "own", {"diffusivity": "D"}), ball()]


D = Parameter("D", 0.5, 3.0, "mm^2/s")


def test_diffusivities_in_the_unit_of_maps_are_refused():
    with pytest.raises(ValueError, match="Bound of parameter 'D' is 0.003; here it is in um"):
        Parameter("D", 0.5e-3, 3e-3, "mm^2/s")
    with pytest.raises(ValueError, match="diffusivity of the ball of 'water' is 0.003"):
        ball(3e-3)
    model = compose(two_shells(), [ball("D")], [Parameter("D", 0.0, 3.0, "mm^2/s")])
    with pytest.raises(ValueError, match="D is 0.001; here it is in um"):
        model.signals({"D": [0.0, 1e-3, 1.0]})  # immobile water is no mistake
    assert model.signals({"D": np.zeros(0)}).shape == (0, len(two_shells()))
    with pytest.raises(ValueError, match=r"fixed\['D_known'\] is 0.0017"):
        compose(two_shells(), [ball("D_known")], fixed={"D_known": 1.7e-3})


def test_pools_are_whole():
    """Two compartments of one pool without shares had a signal of 2 without diffusion."""
    with pytest.raises(ValueError, match="'water' .*without diffusion is 2.*share each"):
        compose(two_shells(), [ball(), ball("D")], [D])
    compose(two_shells(), [ball(share=0.3), ball("D", share=0.7)], [D])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda signal: 0.9 * signal, "is 0.9 without"),
        (lambda signal: np.nan * signal, "is nan without"),
        (lambda signal: signal.numpy(), "is a ndarray of"),
        (lambda signal: signal[0], r"is a Tensor of shape \(\d, 3\)"),
        (lambda signal: signal.no_such_method(), "fails: AttributeError"),
    ],
)
def test_custom_kernels_return_attenuations(change, message):
    def signal(encoding, square, *, diffusivity):
        return change(decay(encoding, square, diffusivity=diffusivity))

    with pytest.raises(ValueError, match=f"signal of kernel 'own' {message}"):
        compose(two_shells(), custom(signal), [D])


def test_a_right_kernel_is_accepted():
    assert compose(two_shells(), custom(decay), [D]).definition.pools == ("own", "water")


def test_unknown_arguments_are_answered_with_similar_ones():
    with pytest.raises(
        TypeError, match="NODDIModel has no argument .*did you mean 'parallel_diff"
    ):
        NODDIModel(two_shells(), parallel_difusivity=1.7e-3)
    data = np.ones(len(two_shells()))
    with pytest.raises(TypeError, match="NODDIModel.fit has no argument 'sgima'; .*'sigma'"):
        NODDIModel(two_shells()).fit(data, sgima=1.0)


def test_a_scan_without_b0_and_an_empty_mask_are_named():
    acquisition = two_shells()
    weighted = acquisition.subset(~acquisition.b0_mask)
    model = NODDIModel(weighted)
    with pytest.warns(UserWarning, match=r"no b0 \(smallest b .*S0 is extrapolated"):
        model.fit(np.exp(-weighted.b), sigma=0.02, n_draws=0)
    with pytest.warns(UserWarning, match="mask has no voxel of the 3: nothing is fitted"):
        NODDIModel(acquisition).fit(np.ones((3, len(acquisition))), mask=np.zeros(3), sigma=1.0)
