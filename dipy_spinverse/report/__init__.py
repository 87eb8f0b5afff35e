"""Files, figures and pages of a fit."""
