"""The signals of compartments, differentiable in their parameters."""
