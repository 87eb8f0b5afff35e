"""Models of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.definition import Compartment, Definition, Parameter
from dipy_spinverse.compartments.model import CompartmentModel


def compose(
    gtab: GradientTable | Acquisition,
    compartments: Iterable[Compartment],
    parameters: Iterable[Parameter] = (),
    *,
    name: str = "custom model",
    fixed: Mapping[str, float] | None = None,
    derived: Mapping[str, Callable] | None = None,
    maps: Iterable[str] = (),
    **kwargs: Any,
) -> CompartmentModel:
    """A model of one's own.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
    compartments : iterable of Compartment
        Each argument is the name of a parameter (searched for inside its bounds), a number
        (known), or a function of all values (linked).
    parameters : iterable of Parameter
    name : str, optional
    fixed : mapping of float, optional
        Values that arguments may name, which a fit takes as given and asks the data about.
    derived : mapping, optional
        Further maps, functions of all values and fractions.
    maps : iterable of str, optional
        Names of the maps that a fit has; all parameters, pools and derived ones where not given.
    **kwargs
        As :class:`CompartmentModel`.

    Examples
    --------
    Sticks and free water, with a diffusivity of the sticks that is fitted:

    >>> import numpy as np
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse.compartments import Compartment, Parameter, compose
    >>> directions = np.random.default_rng(0).standard_normal((40, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> gtab = gradient_table(np.repeat([0, 1000, 2000, 3000], 10), bvecs=directions)
    >>> model = compose(
    ...     gtab,
    ...     [Compartment("stick", "neurites", {"diffusivity": "along"}),
    ...      Compartment("ball", "water", {"diffusivity": 3.0})],
    ...     [Parameter("along", 0.5, 3.0, "mm^2/s")])
    >>> truth = {"along": 2.0, "neurites": 0.7, "axis": [1, 0, 0]}
    >>> fit = model.fit(100 * model.signals(truth), sigma=0.01)
    >>> float(fit.along.round(6)), float(fit.neurites.round(3))
    (0.002, 0.7)
    """
    definition = Definition(
        name, tuple(parameters), tuple(compartments), fixed or {}, derived or {}, maps=tuple(maps)
    )
    return CompartmentModel(gtab, definition, **kwargs)
