"""A model in the device's memory: weights, KV cache, logits and the descriptor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.device.buffers import Buffers
from llama_pynq.errors import DeviceMemoryError, LimitError, RequestError
from llama_pynq.kernel import abi, kv_cache
from llama_pynq.kernel.limits import KernelLimits, check_limits
from llama_pynq.kernel.stages import rope_turns
from llama_pynq.weights.packed import PackedModel

NO_MODEL = "no model is loaded: call load_model() first"


def check_fits(packed: PackedModel, limits: KernelLimits) -> None:
    """Raise LimitError if a model exceeds the kernel's limits or is packed for another one."""
    check_limits(packed.config, limits)
    if packed.target != limits.target:
        raise LimitError(
            f"{packed.path} is packed for {packed.target.channels} channels of "
            f"{packed.target.tile_rows}-row tiles; this kernel ({limits.board}) has "
            f"{limits.channels} of {limits.tile_rows}. Pack it for this device: "
            "llama-pynq pack"
        )


@dataclass(frozen=True)
class LoadedModel:
    """A model that the kernel can run: a new one for every change, so no reader sees half of it.

    Attributes
    ----------
    packed : PackedModel
    config : ModelConfig
        Shape of the weights.
    slots : int
        Sequences that the KV cache holds.
    kv_bits : {32, 8}
        Format of the KV cache.
    owner : object
        What the caller of `KernelDriver.load_weights` named as the model's owner.
    """

    packed: PackedModel
    config: ModelConfig
    slots: int
    kv_bits: int
    owner: object


class ModelMemory:
    """The buffers of a model.

    Parameters
    ----------
    buffers : Buffers
        Holds the model's buffers, which are allocated here.
    device : pynq.Device
    limits : KernelLimits

    Attributes
    ----------
    loaded : LoadedModel or None
        None if the kernel has no complete model.
    """

    def __init__(self, buffers: Buffers, device: Any, limits: KernelLimits) -> None:
        self._buffers, self._device, self._limits = buffers, device, limits
        self._cache_names = [f"kv_cache_{p}" for p in range(limits.kv_ports)]
        self.loaded: LoadedModel | None = None
        buffers.replace("model", limits.model_words, np.uint32)

    # ---- loading ---------------------------------------------------------------------

    def load(
        self,
        packed: PackedModel,
        slots: int,
        kv_bits: int,
        owner: object,
        check: Callable[[], None],
    ) -> None:
        """Upload a packed model, and make room for `slots` sequences.

        Parameters
        ----------
        packed : PackedModel
        slots : int
        kv_bits : {32, 8}
        owner : object
            See `LoadedModel`.
        check : callable
            Called before every part of the weights; ends the upload by raising.

        Raises
        ------
        DeviceMemoryError, CheckpointError
            No model is loaded then.
        """
        limits, buffers = self._limits, self._buffers
        self._withdraw()
        # Free all of the old model before allocating the new one: memory may hold only one.
        weights = [f"weights_{c}" for c in range(limits.channels)]
        buffers.replace_by_placeholders(*self._cache_names, "logits", *weights)
        try:
            for channel, size in enumerate(packed.sizes):
                buffer = buffers.replace(weights[channel], size, np.uint8)
                self._upload(packed, channel, buffer, check)
            buffers.replace("logits", limits.max_rows * packed.config.vocab_size, np.float32)
            self._place_cache(packed, slots, kv_bits, owner)
        except DeviceMemoryError as error:
            raise self._too_large(packed, slots, kv_bits, error) from error

    def _too_large(
        self, packed: PackedModel, slots: int, kv_bits: int, error: DeviceMemoryError
    ) -> DeviceMemoryError:
        """The error, and what the model's memory depends on."""
        context, limits = packed.config.seq_len, self._limits
        cache = limits.kv_ports * limits.kv_port_bytes(packed.config, kv_bits, slots)
        return DeviceMemoryError(
            f"{error}. The model takes {packed.weight_bytes / 2**20:.1f} MiB for its weights, and "
            f"{cache / 2**20:.1f} MiB for its KV cache with slots={slots}, kv_bits={kv_bits} and "
            f"context={context}; load_model() takes fewer slots, kv_bits=8, and a shorter context"
        )

    def _withdraw(self) -> None:
        """Leave no descriptor over buffers that are to be replaced, on the host or the device."""
        if self.loaded is None:
            return
        self.loaded = None
        model = self._buffers["model"]
        model[:] = 0
        model.sync_to_device()

    def _upload(
        self, packed: PackedModel, channel: int, buffer: Any, check: Callable[[], None]
    ) -> None:
        # On the emulated device, sync part by part and release each part's host copy, which is then
        # of no use. Elsewhere sync once: PYNQ 4 syncs the whole buffer, whatever the slice.
        release = getattr(self._device, "release_host_pages", None)

        def write(offset: int, part: np.ndarray) -> None:
            check()
            there = buffer[offset : offset + len(part)]
            there[:] = part
            if release is not None:
                there.sync_to_device()
                release(there)

        packed.upload(channel, write)
        if release is None:
            buffer.sync_to_device()

    def resize_cache(self, slots: int) -> None:
        """Resize the KV cache to `slots` sequences; its content is lost.

        Raises
        ------
        DeviceMemoryError
            If there is no room; the cache then has its old size again.
        """
        old = self.loaded
        assert old is not None
        self._withdraw()
        try:
            self._place_cache(old.packed, slots, old.kv_bits, old.owner)
        except DeviceMemoryError:
            self._place_cache(old.packed, old.slots, old.kv_bits, old.owner)
            raise

    def _place_cache(self, packed: PackedModel, slots: int, kv_bits: int, owner: object) -> None:
        """Allocate the KV cache, and write the descriptor: the model is loaded then."""
        size = self._limits.kv_port_bytes(packed.config, kv_bits, slots)
        # Free all of the old cache before allocating the new one.
        self._buffers.replace_by_placeholders(*self._cache_names)
        for name in self._cache_names:
            self._buffers.replace(name, size, np.uint8)
        self._describe(packed, slots, kv_bits)
        self.loaded = LoadedModel(packed, packed.config, slots, kv_bits, owner)

    def _describe(self, packed: PackedModel, slots: int, kv_bits: int) -> None:
        """Write the descriptor that the kernel reads at every call."""
        config = packed.config
        values = {
            "magic": abi.MAGIC,
            "abi": abi.ABI_VERSION,
            "dim": config.dim,
            "hidden_dim": config.hidden_dim,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "vocab_size": config.vocab_size,
            "seq_len": config.seq_len,
            "group_size": packed.group_size,
            "tied": int(config.tied),
            "rope_theta": int(np.float32(config.rope_theta).view(np.uint32)),
            "slots": slots,
            "weight_bits": packed.weight_bits,
            "kv_bits": kv_bits,
        }
        model = self._buffers["model"]
        model[:] = 0
        model[: len(abi.MODEL_FIELDS)] = [values[name] for name in abi.MODEL_FIELDS]
        table = rope_turns(config.head_size, config.rope_theta, config.rope_divisors).view(
            np.uint32
        )
        base = abi.MODEL_ROPE_TABLE
        model[base : base + len(table)] = table
        model.sync_to_device()

    # ---- reading back ----------------------------------------------------------------

    def read_logits(self, row: int) -> np.ndarray:
        """Full logits of a row of the last call, (vocab_size,) float32."""
        assert self.loaded is not None
        size = self.loaded.config.vocab_size
        return self._buffers.fetch("logits", slice(row * size, (row + 1) * size)).astype(np.float32)

    def read_activations(self, n_rows: int) -> np.ndarray:
        """Residual stream of the last call, (n_rows, dim) float32."""
        assert self.loaded is not None
        dim = self.loaded.config.dim
        part = self._buffers.fetch("activations", slice(n_rows * dim))
        return part.astype(np.float32).reshape(n_rows, dim)

    def read_cache(self, slot: int, positions: int) -> np.ndarray:
        """Keys and values of a slot; see `KernelDriver.read_cache`."""
        loaded, limits = self.loaded, self._limits
        assert loaded is not None
        config, kv_bits = loaded.config, loaded.kv_bits
        if not (0 <= slot < loaded.slots and 0 < positions <= config.seq_len):
            raise RequestError(
                f"slot {slot}, {positions} positions: the KV cache has {loaded.slots} slots of "
                f"{config.seq_len} positions"
            )
        ports, share = limits.kv_ports, limits.kv_port_bytes(config, kv_bits, 1)
        heads = -(-config.n_kv_heads // ports)
        out = np.empty(
            (2, config.n_layers, config.n_kv_heads, positions, config.head_size), np.float32
        )
        for port in range(min(ports, config.n_kv_heads)):
            part = self._buffers.fetch(
                self._cache_names[port], slice(slot * share, (slot + 1) * share)
            )
            records = part.reshape(config.n_layers, heads, config.seq_len, -1)
            mine = records[:, : len(range(port, config.n_kv_heads, ports)), :positions]
            out[:, :, port::ports] = kv_cache.read_records(
                mine, kv_bits, limits.kv_beat_bytes, config.head_size
            )
        return out
