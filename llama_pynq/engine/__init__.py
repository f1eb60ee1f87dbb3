"""Text generation on a device: sequences, slots, scheduling, sampling."""
