"""Quantise a checkpoint's weights and pack them in the order that the hardware reads."""
