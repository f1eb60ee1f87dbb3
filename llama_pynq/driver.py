"""The driver that PYNQ binds to the ``llama`` IP of an overlay: loading models, generating text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_pynq.device.kernel_driver import KernelDriver
from llama_pynq.device.model_memory import NO_MODEL
from llama_pynq.energy import EnergyMeter
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.loading import load
from llama_pynq.engine.results import Generation, StreamToken
from llama_pynq.errors import RequestError
from llama_pynq.kernel.registers import VLNVS


class LlamaDriver(KernelDriver):
    """Driver of the ``llama`` IP: loads models and generates text.

    PYNQ binds it by VLNV, on Zynq, on Alveo and on the emulated device.
    """

    bindto = list(VLNVS)  # in this class's body, where PYNQ looks for it

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description)
        self._llama: Llama | None = None

    def load_model(
        self,
        path: str | Path | None = None,
        tokenizer: str | Path | None = None,
        *,
        group_size: int | None = None,
        weight_bits: int | None = None,
        kv_bits: int = 32,
        slots: int | None = None,
        rope_theta: float | None = None,
        power: EnergyMeter | None = None,
    ) -> Llama:
        """Load a checkpoint, or the bundled model; see `engine.loading.load`."""
        self._llama = load(
            self, path, tokenizer, group_size=group_size, weight_bits=weight_bits,
            kv_bits=kv_bits, slots=slots, rope_theta=rope_theta, power=power,
        )  # fmt: skip
        return self._llama

    @property
    def loaded_model(self) -> Llama | None:
        """The loaded model; None if there is none."""
        llama = self._llama
        return llama if llama is not None and llama.packed is self.packed else None

    @property
    def model(self) -> Llama:
        """The loaded model.

        Raises
        ------
        RequestError
            If there is none.
        """
        self._check_open()
        llama = self.loaded_model
        if llama is None:
            raise RequestError(NO_MODEL)
        return llama

    def adopt(self, model: Llama) -> None:
        """Upload a model again that was loaded before the overlay was reset."""
        model.upload(max(self.slots, 1))
        self._llama = model

    def _drop(self) -> None:
        super()._drop()
        self._llama = None

    def generate(
        self, prompt: str | Sequence[str] = "", **kwargs: Any
    ) -> Generation | list[Generation]:
        """See `engine.llama.Llama.generate`."""
        return self.model.generate(prompt, **kwargs)

    def stream(self, prompt: str = "", **kwargs: Any) -> Iterator[str]:
        """See `engine.llama.Llama.stream`."""
        return self.model.stream(prompt, **kwargs)

    def stream_tokens(self, prompt: str = "", **kwargs: Any) -> Iterator[StreamToken]:
        """See `engine.llama.Llama.stream_tokens`."""
        return self.model.stream_tokens(prompt, **kwargs)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """See `engine.llama.Llama.logits`."""
        return self.model.logits(tokens)
