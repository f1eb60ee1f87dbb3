"""Modelled figures of a board: speed, capacity, resources and power."""
