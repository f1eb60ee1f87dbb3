"""Training of the bundled model: story generator, tokenizer, PyTorch training, export."""
