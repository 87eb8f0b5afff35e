"""Linear finite elements on a tetrahedral grid, and their Laplace modes."""
