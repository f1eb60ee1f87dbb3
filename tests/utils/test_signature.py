"""Methods that pass their arguments on show the arguments of the method that they call."""

import inspect
import pydoc

import pytest

from llama_pynq import EmulatedDevice, Llama, LlamaDriver, LlamaOverlay

METHODS = ["generate", "stream", "stream_tokens", "logits"]


@pytest.mark.parametrize("where", [LlamaDriver, LlamaOverlay])
@pytest.mark.parametrize("name", METHODS)
def test_signature_and_docstring_are_the_models(where, name):
    shown, meant = getattr(where, name), getattr(Llama, name)
    assert inspect.signature(shown) == inspect.signature(meant)
    assert inspect.getdoc(shown) == inspect.getdoc(meant)


def test_load_model_shows_its_arguments_on_the_overlay_too():
    assert inspect.signature(LlamaOverlay.load_model) == inspect.signature(LlamaDriver.load_model)
    assert "kv_bits : {32, 8}" in LlamaOverlay.load_model.__doc__


def test_help_of_a_bound_method_lists_every_default():
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        for holder in (overlay, overlay.llama):
            text = pydoc.render_doc(holder.generate, renderer=pydoc.plaintext)
            for argument in ("max_new_tokens: 'int' = 512", "top_p: 'float' = 0.9", "seed: 'int"):
                assert argument in text
            assert "kwargs" not in str(inspect.signature(holder.load_model))
