"""The bundled model: ``stories.bin``, its tokenizer and its model card."""
