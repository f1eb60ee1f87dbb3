"""SmolLM2-135M-Instruct from its GGUF file: golden ids, on the emulated device."""

import pytest
from support.generating import opened
from support.real_models import SMOLLM2, needs_smollm2

QUESTION = [
    {"role": "system", "content": "You answer questions."},
    {"role": "user", "content": "What is the capital of France?"},
]
PARIS = [504, 3575, 282, 4649, 314, 7042, 30]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    needs_smollm2()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PYNQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        with opened() as overlay:
            overlay.load_model(SMOLLM2, slots=1, context=512)
            yield overlay


def test_shape_and_types_are_the_files(overlay):
    model = overlay.llama.model
    c = model.config
    assert (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads) == (576, 1536, 30, 9, 3)
    assert (c.vocab_size, c.tied, c.rope_theta) == (49152, True, 100_000)
    assert model.packed.note == (
        "Q8_0 used as they are; Q4_1 (relative error 5.5e-03) quantised to int8 in groups of 32"
    )


@pytest.mark.parametrize(
    ("prompt", "prompt_ids", "ids"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314], [7042, 30, 198, 198]),
        ("def fibonacci(n):\n", [1604, 3987, 46477, 24, 94, 727, 198],
         [198, 1604, 3987, 46477, 24, 94, 727, 472]),
    ],
)  # fmt: skip
def test_greedy_ids(overlay, prompt, prompt_ids, ids):
    out = overlay.generate(prompt, temperature=0, max_new_tokens=len(ids))
    assert (out.prompt_tokens, out.tokens) == (prompt_ids, ids)


def test_a_conversation_is_answered_and_ends(overlay):
    out = overlay.chat(QUESTION, temperature=0, max_new_tokens=30)
    assert (out.text, out.tokens) == ("The capital of France is Paris.", PARIS)
    assert (out.finish_reason, out.stop_reason) == ("stop", 2)
    assert "".join(overlay.stream_chat(QUESTION, temperature=0, max_new_tokens=30)) == out.text


def test_a_seed_gives_one_text_alone_and_in_a_batch(overlay):
    alone = overlay.generate("Once", seed=7, max_new_tokens=8)
    batch = overlay.generate(["The sea", "Once"], seed=7, max_new_tokens=8)
    assert alone.tokens == batch[1].tokens == [79, 269, 24, 3638, 515, 42, 46076, 727]
