"""Measured figures: speed, stage times, power, and the self-test."""
