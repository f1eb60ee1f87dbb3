"""Builds overlays with AMD's tools: what they are told, run, and what they reported.

Nothing here needs NumPy or PYNQ, except the test bench's data (`vectors`): a machine with Vitis
needs a checkout and Python. ``python -m llama_pynq.vitis --help``, or ``make -C hls_src``.
"""
