"""A model in the device's memory: limits, weights, and the KV cache's size."""

import pytest
from support.kernel_rows import sampled

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import DeviceMemoryError, LimitError, RequestError

pytestmark = pytest.mark.usefixtures("own_locks")


def test_load_model_beyond_the_limits_names_each(tmp_path):
    from support.checkpoint_files import write_checkpoint

    from llama_pynq import ModelConfig

    config = ModelConfig(dim=8, hidden_dim=20000, n_layers=1, n_heads=2, n_kv_heads=2,
                         vocab_size=20, seq_len=40000, tied=True)  # fmt: skip
    write_checkpoint(tmp_path / "wide.bin", config, 0)
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        with pytest.raises(LimitError) as error:
            overlay.load_model(tmp_path / "wide.bin")
    assert "hidden_dim 20000 (at most 14336)" in str(error.value)
    assert "seq_len" not in str(error.value), "a longer context is cut"


def test_run_without_a_model_says_so():
    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        with pytest.raises(RequestError, match="no model is loaded"):
            overlay.llama.run(sampled())


def test_cache_that_cannot_be_placed_leaves_no_model(overlay, monkeypatch):
    driver = overlay.llama
    allocate = driver.buffers.allocate

    def full(name, n, dtype):
        if name == "kv_cache_1" and n > 1024:
            raise DeviceMemoryError("full")
        return allocate(name, n, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(driver.buffers, "allocate", full)
        with pytest.raises(DeviceMemoryError):
            driver.resize_cache(8)
    with pytest.raises(RequestError, match="no model is loaded"):
        overlay.generate("a")
    overlay.load_model()
    assert overlay.generate("a", max_new_tokens=2).tokens


def test_interrupted_resize_leaves_the_device_usable(overlay, monkeypatch):
    driver = overlay.llama
    allocate = driver.buffers.allocate

    def interrupted(name, n, dtype):
        if name == "kv_cache_1" and n > 1024:
            raise KeyboardInterrupt
        return allocate(name, n, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(driver.buffers, "allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            driver.resize_cache(8)
    overlay.load_model()
    assert overlay.generate("a", max_new_tokens=2).tokens


def test_emulated_board_is_held_to_its_limits_and_gives_the_same_tokens(tmp_path):
    from support.checkpoint_files import write_checkpoint

    from llama_pynq import ModelConfig

    with LlamaOverlay(emulated_overlay(), device=EmulatedDevice()) as overlay:
        overlay.load_model()
        expected = overlay.generate("Once", max_new_tokens=20, temperature=0).tokens
    config = ModelConfig(dim=2048, hidden_dim=64, n_layers=1, n_heads=32, n_kv_heads=32,
                         vocab_size=20, seq_len=40, tied=True)  # fmt: skip
    write_checkpoint(tmp_path / "wide.bin", config, 0)
    with LlamaOverlay(emulated_overlay(".bit"), device=EmulatedDevice(board="pynq-z2")) as overlay:
        assert overlay.llama.limits.board == "pynq-z2"
        assert overlay.llama.limits.max_rows == 1
        with pytest.raises(LimitError, match=r"on pynq-z2: dim 2048 \(at most 1024\)"):
            overlay.load_model(tmp_path / "wide.bin")
        overlay.load_model()
        batch = overlay.generate(["Once", "One", "A"], max_new_tokens=20, temperature=0)
        assert batch[0].tokens == expected
