"""Before scanning: what an acquisition can determine, and what to add."""

from dipy_spinverse.scan_design.bounds import MapBounds, map_bounds
from dipy_spinverse.scan_design.identifiability import Identifiability, identifiability
from dipy_spinverse.scan_design.limitations import Limitation, limitations, resolution_limit_um
from dipy_spinverse.scan_design.suggestions import Suggestions, suggest

__all__ = [
    "Limitation",
    "Identifiability",
    "MapBounds",
    "Suggestions",
    "limitations",
    "identifiability",
    "map_bounds",
    "resolution_limit_um",
    "suggest",
]
