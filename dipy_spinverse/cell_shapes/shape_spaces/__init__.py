"""Shape spaces: parametrisations of the shape of a closed cell, with bounds and a prior."""
