"""Python twin of hls_src/: ABI, registers, limits, board constants and reference arithmetic."""
