"""Modelled figures: speed, capacity, area and power of a board."""
