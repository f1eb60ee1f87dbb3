"""The command line, llama-pynq."""
