"""Walls of a grid: meshes, maps, comparison, symmetries."""
