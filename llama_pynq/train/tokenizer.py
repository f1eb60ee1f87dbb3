"""Train the bundled model's sentencepiece tokenizer and write it in llama2.c's format too."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

from llama_pynq.train.stories import story
from llama_pynq.utils.files import write_atomically

VOCAB_SIZE = 1024
BOS, EOS = 1, 2


def train_tokenizer(
    path: Path, seed: int = 0, n_stories: int = 5000, vocab_size: int = VOCAB_SIZE
) -> None:
    """Train a BPE tokenizer with Llama 2's settings on generated stories.

    Parameters
    ----------
    path : Path
        The sentencepiece model to write, usually ``tokenizer.model``.
    seed : int
        Seed of the stories.
    n_stories : int
    vocab_size : int
        Includes the 3 control tokens and the 256 byte tokens.
    """
    import sentencepiece

    rng = random.Random(f"{seed} tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(story(rng) for _ in range(n_stories)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        byte_fallback=True,  # Text with unseen characters stays encodable, byte by byte.
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        unk_surface=r" \342\201\207 ",
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=1,
    )
    write_atomically(path, model.getvalue())


def export_tokenizer(model_path: Path, bin_path: Path) -> None:
    """Write a sentencepiece model as llama2.c's ``tokenizer.bin``.

    The file starts with a uint32, the longest token's length in bytes. For every id follow the
    float32 score, the int32 length in bytes and the bytes, in UTF-8 with a plain space for
    sentencepiece's U+2581. The byte tokens are spelled ``<0x0A>``; the texts of ids 1 and 2 begin
    and end with a newline.

    References
    ----------
    llama2.c, tokenizer/base.py, export()
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    tokens = []
    for token in range(processor.vocab_size()):
        piece = {BOS: "\n<s>\n", EOS: "\n</s>\n"}.get(token, processor.id_to_piece(token))
        tokens.append((processor.get_score(token), piece.replace("▁", " ").encode()))
    data = struct.pack("<I", max(len(text) for _, text in tokens))
    for score, text in tokens:
        data += struct.pack("<fi", score, len(text)) + text
    write_atomically(bin_path, data)
