"""Scripts that reproduce every figure of the documentation; see README.md."""
