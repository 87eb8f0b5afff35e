"""Draws from the posterior of compartments."""
