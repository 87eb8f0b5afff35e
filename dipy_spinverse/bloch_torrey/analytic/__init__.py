"""Signals known without a grid: exact and approximate ones."""
