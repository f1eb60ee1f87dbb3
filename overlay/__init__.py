"""Overlay files, one folder per board; see README.md."""
