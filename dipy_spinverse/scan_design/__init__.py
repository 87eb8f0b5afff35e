"""Identifiability of maps with a planned acquisition, and shells to add."""

from dipy_spinverse.scan_design.identifiability import identifiability
from dipy_spinverse.scan_design.suggestions import suggest

__all__ = ["identifiability", "suggest"]
