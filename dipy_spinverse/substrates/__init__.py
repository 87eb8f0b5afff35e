"""Synthetic substrates: the face permeabilities of a grid that holds known membranes."""

from dipy_spinverse.substrates.walls_of_bodies import (
    bent_tube,
    cylinders,
    from_inside,
    spheres,
    torus,
)

__all__ = [
    "bent_tube",
    "cylinders",
    "from_inside",
    "spheres",
    "torus",
]
