"""The driver of the kernel: buffers, registers, calls."""
