"""Before scanning: what an acquisition can determine, and what to add."""

from dipy_spinverse.scan_design.blind_spots import BlindSpot, blind_spots, resolution_limit_um
from dipy_spinverse.scan_design.bounds import MapBounds, map_bounds
from dipy_spinverse.scan_design.identifiability import Identifiability, identifiability
from dipy_spinverse.scan_design.suggestions import Suggestions, suggest

__all__ = [
    "BlindSpot",
    "Identifiability",
    "MapBounds",
    "Suggestions",
    "blind_spots",
    "identifiability",
    "map_bounds",
    "resolution_limit_um",
    "suggest",
]
