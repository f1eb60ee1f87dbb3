"""The Python twin of hls_src/: what host and kernel agree on, and the reference arithmetic."""
