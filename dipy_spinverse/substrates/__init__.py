"""Synthetic substrates: face permeabilities of a grid with known membranes."""

from dipy_spinverse.substrates.membranes import bent_tube, cylinders, from_inside, spheres, torus

__all__ = ["bent_tube", "cylinders", "from_inside", "spheres", "torus"]
