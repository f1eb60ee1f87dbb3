"""Text to token ids and back: llama2.c's tokenizer.bin and sentencepiece models.

How the two formats differ on the same vocabulary (Llama 2's has neither of the last two):

- The character U+2581 (LOWER ONE EIGHTH BLOCK) is sentencepiece's own sign for a space, and a
  sentencepiece model reads it as one; in a ``.bin`` file it is an ordinary character.
- A character that is no token by itself but is part of a longer one: sentencepiece merges first
  and falls back to bytes afterwards; llama2.c splits it into bytes first, and then never finds
  the longer token.
- A sentencepiece model may normalise text (Unicode forms, runs of spaces) and may mark tokens as
  unused; a ``.bin`` file holds neither rule.
"""
