"""The ``llama-pynq`` command line."""
