"""Model files: reader of llama2.c checkpoints, shapes of models, random models."""
