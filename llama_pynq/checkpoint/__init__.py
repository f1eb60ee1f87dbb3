"""Readers of model files, and the models' shapes."""
