"""Identifiability of maps with a planned acquisition, and shells to add."""

from dipy_spinverse.scan_design.bounds import MapBounds
from dipy_spinverse.scan_design.identifiability import Identifiability, identifiability
from dipy_spinverse.scan_design.limitations import Limitation
from dipy_spinverse.scan_design.suggestions import Suggestions, suggest

__all__ = [
    "Identifiability",
    "Limitation",
    "MapBounds",
    "Suggestions",
    "identifiability",
    "suggest",
]
