"""The driver that PYNQ binds to the ``llama`` IP of an overlay: loading models, generating text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama_pynq.device.kernel_driver import KernelDriver
from llama_pynq.device.model_memory import LoadedModel
from llama_pynq.energy import EnergyMeter
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.loading import load
from llama_pynq.engine.results import Generation, StreamToken
from llama_pynq.engine.watchers import model_loaded
from llama_pynq.kernel.registers import VLNVS
from llama_pynq.utils.signature import delegates_to


class LlamaDriver(KernelDriver):
    """Driver of the ``llama`` IP: loads models and generates text.

    PYNQ binds it by VLNV, on Zynq, on Alveo and on the emulated device.

    Parameters
    ----------
    description : dict
        PYNQ's description of the IP.
    """

    bindto = list(VLNVS)  # in this class's body, where PYNQ looks for it

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
        reading: str | None = None,
        context: int | None = None,
        chat_template: str | None = None,
        power: EnergyMeter | None = None,
    ) -> Llama:
        """Load a model onto the device; the bundled one by default.

        Parameters
        ----------
        path : str or Path, optional
            A llama2.c checkpoint (version 0, 1 or 2) or a packed model; default the bundled one.
        tokenizer : str or Path, optional
            Its tokenizer, sentencepiece or llama2.c; not needed with the bundled model or a
            packed file that carries one.
        group_size : {32, 64}, optional
            Default: see `weights.quantize.QuantizedModel`.
        weight_bits : {8, 4}, optional
            Default 8, or the packed file's. 4 halves the bytes that a token reads.
        kv_bits : {32, 8}
            Format of the KV cache: float32, or int8 with a scale for each head's key and value.
        slots : int, optional
            Sequences to hold at a time; default 4, or fewer if memory is short. The cache grows
            automatically for a larger batch.
        rope_theta : float, optional
            Not in a llama2.c file; default 10000. A packed file has its own.
        reading : {"export"}, optional
            How to read a checkpoint of version 2 whose groups straddle rows; see
            `load_checkpoint`.
        context : int, optional
            Tokens that a sequence may hold, prompt included; a shorter one makes the KV cache
            smaller. Default: the model's own, or, with a warning, the kernel's limit if that is
            shorter.
        chat_template : str, optional
            For `chat`, instead of the file's own: in Jinja, or one of chatml, llama2, llama3 and
            zephyr.
        power : measure.power.PowerRecorder, optional
            A recorder that is recording; loading is marked on it.

        Returns
        -------
        Llama

        Raises
        ------
        CheckpointError, TokenizerError, LimitError
            If a file cannot be used. The model that was loaded before stays, unless damage of a
            packed file is found only during the upload.
        DeviceMemoryError
            If the model does not fit. No model is loaded then.
        RequestError
            If an argument is out of range.
        """
        llama = load(
            self, path, tokenizer, group_size=group_size, weight_bits=weight_bits,
            kv_bits=kv_bits, slots=slots, rope_theta=rope_theta, reading=reading,
            context=context, chat_template=chat_template, power=power,
        )  # fmt: skip
        model_loaded(llama)
        return llama

    @property
    def loaded_model(self) -> Llama | None:
        """The loaded model; None if there is none."""
        owner = self.owner
        return owner if isinstance(owner, Llama) else None

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
            raise self._no_model()
        return llama

    def adopt(self, model: Llama) -> None:
        """Upload a model again that was loaded before the overlay was reset.

        Parameters
        ----------
        model : Llama
        """
        model.upload(max(self.slots, 1))
        model_loaded(model)

    def _restore(self, model: LoadedModel) -> None:
        if isinstance(model.owner, Llama):
            model.owner.upload(model.slots)  # which packs it again if its file is gone
        else:
            super()._restore(model)

    @delegates_to(Llama.generate)
    def generate(
        self, *args: Any, **kwargs: Any
    ) -> Generation | list[Generation] | list[list[Generation]]:
        return self.model.generate(*args, **kwargs)

    @delegates_to(Llama.stream)
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        return self.model.stream(*args, **kwargs)

    @delegates_to(Llama.stream_tokens)
    def stream_tokens(self, *args: Any, **kwargs: Any) -> Generator[StreamToken, None, None]:
        return self.model.stream_tokens(*args, **kwargs)

    @delegates_to(Llama.chat)
    def chat(self, *args: Any, **kwargs: Any) -> Generation:
        return self.model.chat(*args, **kwargs)

    @delegates_to(Llama.stream_chat)
    def stream_chat(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        return self.model.stream_chat(*args, **kwargs)

    @delegates_to(Llama.logits)
    def logits(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.model.logits(*args, **kwargs)
