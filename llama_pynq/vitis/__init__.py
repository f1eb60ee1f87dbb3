"""Build overlays with AMD's tools: generate input files, run the tools, read their reports.

Only the test bench's data (`vectors`) needs NumPy or PYNQ: a machine with Vitis needs a checkout
and Python. See ``python -m llama_pynq.vitis --help``, or ``make -C hls_src``.
"""
