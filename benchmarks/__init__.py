"""The scripts that every figure of the documentation comes from; see README.md."""
