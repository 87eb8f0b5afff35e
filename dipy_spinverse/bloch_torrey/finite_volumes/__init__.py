"""Finite volumes on a tetrahedral grid: one unknown in each tetrahedron."""
