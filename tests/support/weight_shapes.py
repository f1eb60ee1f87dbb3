"""Shapes of models, and layouts that their weights are packed for."""

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel.config import Target

CONFIG = ModelConfig(64, 128, 2, 4, 2, 100, 32, True)
UNTIED = ModelConfig(64, 172, 2, 4, 2, 101, 32, False)
HALF = ModelConfig(96, 160, 2, 4, 2, 70, 16, True)  # the last groups are stored as half groups
TARGETS = [Target(2, 32), Target(4, 32), Target(32, 16)]
