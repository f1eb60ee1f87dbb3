"""What fits on a board."""

from dataclasses import replace

from support.estimated import BOARDS, KV260, STORIES110M, U50

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.estimate.capacity import buffers, fits
from llama_pynq.kernel.config import board_headers
from llama_pynq.kernel.limits import KernelLimits


def test_a_model_fits_where_its_buffers_do():
    assert fits(STORIES110M, KV260) == (True, "")
    fitting, reason = fits(STORIES110M, BOARDS["pynq-z2"])
    assert not fitting
    assert reason == (
        "weights and KV cache take 183 MiB of contiguous memory (slots 1, kv_bits 32, "
        "context 1024), PYNQ-Z2 has 128 MiB"
    )
    assert fits(STORIES110M, BOARDS["pynq-z2"], weight_bits=4, kv_bits=8)[0]


def test_a_shape_beyond_the_kernels_limits_does_not_fit():
    large = ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False)
    fitting, reason = fits(large, KV260)
    assert not fitting
    assert "dim 4096 (at most 2048)" in reason


def test_a_pseudo_channel_bounds_one_channels_buffer():
    large = ModelConfig(4096, 11008, 32, 32, 32, 32000, 4096, tied=False)
    fitting, reason = fits(large, BOARDS["u280"])
    assert not fitting
    assert "one of 32 banks would hold" in reason or "contiguous" in reason
    assert fits(large, BOARDS["u55c"], weight_bits=4, kv_bits=8)[0]


def test_a_context_beyond_the_kernels_limit_is_cut_as_when_it_is_loaded():
    longest = KernelLimits.from_header(board_headers()["kv260"]).max_seq_len
    long = replace(STORIES110M, seq_len=100 * longest)
    assert fits(long, KV260) == fits(replace(long, seq_len=longest), KV260) == (True, "")
    assert f"context {longest})" in fits(long, KV260, slots=64)[1]


def test_more_sequences_take_more_room():
    one, many = (buffers(STORIES110M, KV260, slots=n)[1] for n in (1, 8))
    assert many == 8 * one
    assert not fits(STORIES110M, KV260, slots=64)[0]


def test_a_shared_masters_keys_and_values_lie_in_its_weights_bank():
    sizes, port = buffers(STORIES110M, U50)
    slots = U50.memory.bank_bytes // port
    assert sizes[0] + slots * port > U50.memory.bank_bytes > sizes[0] + (slots - 1) * port
    many_banks = replace(U50, memory=replace(U50.memory, banks=64))
    assert fits(STORIES110M, many_banks, slots=slots - 1)[0]
    fit, why = fits(STORIES110M, many_banks, slots=slots)
    assert not fit and "one of 64 banks would hold" in why
