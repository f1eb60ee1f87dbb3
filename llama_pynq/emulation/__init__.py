"""A PYNQ device without a board, and the overlay files it loads."""
