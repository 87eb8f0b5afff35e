"""A compartment model of one's own: neurites in all directions, cell bodies, water between."""

import numpy as np
from dipy.data import default_sphere

from dipy_spinverse import Acquisition
from dipy_spinverse.compartments import Compartment, Parameter, compose


def bodies_per_neurite(values):
    """A derived map: a function of all parameters and fractions."""
    return values["bodies"] / values["neurites"]


b, directions = np.repeat([0, 1, 2, 4, 6, 8], 10), default_sphere.vertices[::6][:60]
acquisition = Acquisition(b, directions, small_delta=12, big_delta=30)
model = compose(
    acquisition,
    [
        # A kernel, the pool whose fraction is fitted, and parameters by name or as numbers.
        Compartment("stick", "neurites", {"diffusivity": 2.5}, dispersion="isotropic"),
        Compartment("sphere", "bodies", {"diffusivity": 3.0, "diameter": "body_diameter"}),
        Compartment("ball", "water", {"diffusivity": "between"}),
    ],
    [Parameter("body_diameter", 4.0, 24.0, "um"), Parameter("between", 0.3, 2.0, "mm^2/s")],
    name="neurites and bodies",
    derived={"bodies_per_neurite": bodies_per_neurite},
)
truth = {"neurites": 0.4, "bodies": 0.3, "body_diameter": 14.0, "between": 0.8}
signals = model.signals(truth) + np.random.default_rng(0).normal(scale=0.002, size=(20, 60))
fit = model.fit(signals, sigma=0.002)
for name, expected in {"body_diameter": 14.0, "neurites": 0.4, "bodies_per_neurite": 0.75}.items():
    assert abs(np.median(getattr(fit, name)) / expected - 1) < 0.1, name
