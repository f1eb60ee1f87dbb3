"""Overlays and devices: search, records, metadata, installation, clocks."""
