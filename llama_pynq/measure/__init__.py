"""Measurements on a device: speed, stage times, power, activations, and the self-test."""
