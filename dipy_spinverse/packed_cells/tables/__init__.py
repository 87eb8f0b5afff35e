"""Signals of packed cells on a table of radius, fraction and permeability."""
