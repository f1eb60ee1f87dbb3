"""A call that would leave a buffer is refused before it starts."""

import os
import subprocess
import sys

import pytest
from support.kernel_library import model_words, request_words
from support.paths import REPOSITORY, TESTS
from support.raw_kernel import LIMITS, RawKernel, needed_bytes
from support.weight_shapes import CONFIG, HALF, UNTIED

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.emulation.build import emulated_overlay
from llama_pynq.errors import KernelError
from llama_pynq.kernel import abi

FORMATS = [(64, 8, 32), (32, 8, 8), (64, 4, 8)]  # group size, bits of weights and of the KV cache
ALL = int(
    abi.RequestFlag.PROFILE | abi.RequestFlag.ACTIVATIONS_IN | abi.RequestFlag.ACTIVATIONS_OUT
)


def descriptor(config, group_size, weight_bits, kv_bits, slots=2):
    return model_words(config, group_size, slots, LIMITS.model_words, weight_bits, kv_bits)


def request(config, n_rows=2, steps=1, **options):
    layers = 0, config.n_layers
    return request_words(
        LIMITS.request_words, layers, range(n_rows), range(n_rows), steps=steps, **options
    )


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("config", [CONFIG, UNTIED, HALF], ids=["tied", "untied", "half"])
def test_buffers_of_exactly_the_size_are_enough_and_one_byte_less_is_not(config, form):
    sizes = needed_bytes(config, *form, 2, 2, 1, flags=ALL)
    assert all(sizes.values())
    for short in (None, *sizes):
        kernel = RawKernel({**sizes, **({short: sizes[short] - 1} if short else {})})
        kernel.fill("model", descriptor(config, *form))
        kernel.fill("request", request(config, flags=ALL))
        if short is None:
            kernel.start()
            assert kernel.finish()[abi.STATUS_STATE] == abi.State.DONE
            continue
        name = short.replace("cache", "read")
        message = (
            rf"AP_START refused: the call needs {sizes[short]} bytes of argument '{name}', and its "
            rf"buffer has {sizes[short] - 1} from 0x"
        )
        with pytest.raises(KernelError, match=message):
            kernel.start()


def test_refused_call_leaves_the_device_as_it_was():
    sizes = needed_bytes(CONFIG, 64, 8, 32, 2, 2, 1)
    kernel = RawKernel(sizes)
    model = descriptor(CONFIG, 64, 8, 32)
    kernel.fill("request", request(CONFIG))
    for tied in (1, 0, 1):
        model[abi.MODEL_FIELDS.index("tied")] = tied
        kernel.fill("model", model)
        if not tied:
            with pytest.raises(KernelError, match="argument 'weights_0'"):
                kernel.start()
        else:
            kernel.start()
            assert kernel.finish()[abi.STATUS_STATE] == abi.State.DONE


def test_what_a_call_does_not_use_needs_no_room():
    sizes = needed_bytes(CONFIG, 64, 8, 32, 2, 2, 3, full=False)
    kernel = RawKernel(sizes)
    assert {name for name, size in sizes.items() if not size} == {
        "logits", "activations", "profile",
    }  # fmt: skip
    kernel.fill("model", descriptor(CONFIG, 64, 8, 32))
    kernel.fill("request", request(CONFIG, steps=3, full=False))
    kernel.start()
    assert kernel.finish()[abi.STATUS_STEPS] == 3


def test_describe_needs_only_its_results():
    kernel = RawKernel({"results": 4 * abi.DESCRIBE_WORDS})
    kernel.start(abi.COMMAND_DESCRIBE)
    assert kernel.finish()[abi.STATUS_MAGIC] == abi.MAGIC
    short = RawKernel({"results": 4 * abi.DESCRIBE_WORDS - 4})
    with pytest.raises(KernelError, match="needs 144 bytes of argument 'results'"):
        short.start(abi.COMMAND_DESCRIBE)


@pytest.mark.parametrize(("name", "by"), [("weights_1", 16), ("kv_write_0", 4), ("model", 2)])
def test_pointer_that_its_port_cannot_start_at_is_refused(name, by):
    kernel = RawKernel(needed_bytes(CONFIG, 64, 8, 32, 2, 2, 1))
    buffer = kernel.buffers[name.replace("write", "cache")]
    kernel.write(name, buffer.device_address + by)
    with pytest.raises(RuntimeError, match=f"argument '{name}' holds .* no multiple of its port"):
        kernel.start()


def test_pointer_into_a_buffer_has_only_the_rest_of_it():
    kernel = RawKernel(needed_bytes(CONFIG, 64, 8, 32, 2, 2, 1))
    kernel.fill("model", descriptor(CONFIG, 64, 8, 32))
    kernel.fill("request", request(CONFIG))
    size = kernel.buffers["weights_0"].size
    kernel.write("weights_0", kernel.buffers["weights_0"].device_address + 64)
    with pytest.raises(KernelError, match=f"{size} bytes of argument 'weights_0', .* {size - 64}"):
        kernel.start()


def test_descriptor_and_request_written_while_the_kernel_runs_change_nothing():
    """What was checked is what the kernel reads."""
    sizes = needed_bytes(CONFIG, 64, 8, 32, 2, 2, LIMITS.max_steps // 2, full=False)
    kernel = RawKernel(sizes)
    good = descriptor(CONFIG, 64, 8, 32), request(CONFIG, steps=LIMITS.max_steps // 2, full=False)
    bad = good[0].copy(), request(CONFIG, steps=LIMITS.max_steps, flags=ALL)
    bad[0][2:14] = 0x7FFF
    for _ in range(50):
        kernel.fill("model", good[0])
        kernel.fill("request", good[1])
        kernel.start()
        kernel.fill("model", bad[0])
        kernel.fill("request", bad[1])
        status = kernel.finish()
        assert status[abi.STATUS_ERROR] == 0
        # Positions end the call: the context has fewer than the steps.
        assert status[abi.STATUS_STEPS] >= CONFIG.seq_len - 2


def test_abort_asked_while_the_kernel_runs_ends_the_call():
    config = CONFIG
    sizes = needed_bytes(config, 64, 8, 32, 2, 2, 30, full=False)
    kernel = RawKernel(sizes)
    kernel.fill("model", descriptor(config, 64, 8, 32))
    words = request(config, steps=30, full=False)
    steps = []
    for _ in range(200):
        words[abi.REQUEST_ABORT] = 0
        kernel.fill("request", words)
        kernel.start()
        words[abi.REQUEST_ABORT] = kernel.sequence
        kernel.fill("request", words)
        status = kernel.finish()
        if status[abi.STATUS_STATE] == abi.State.ABORTED:
            steps.append(int(status[abi.STATUS_STEPS]))
    assert steps and min(steps) < 30


# ---- fuzz ------------------------------------------------------------------------------

FUZZ = """
import sys
import numpy as np
from support.kernel_library import model_words, request_words
from support.raw_kernel import LIMITS, RawKernel, needed_bytes
from support.weight_shapes import CONFIG, HALF, UNTIED
from llama_pynq import EmulatedDevice
from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.errors import LlamaPynqError
from llama_pynq.kernel import abi

rng = np.random.default_rng(int(sys.argv[1]))
WORDS = [0, 1, 2, 3, 8, 16, 31, 32, 33, 63, 64, 65, 96, 128, 255, 256, 1000, 4096, 32768, 1 << 16,
         (1 << 20) - 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
FORMATS = [(64, 8, 32), (32, 8, 8), (64, 4, 8), (64, 8, 8), (32, 8, 32)]


def twin(model, request):
    # What the call needs by the package's own layouts; all its rows may sample.
    field = dict(zip(abi.MODEL_FIELDS, map(int, model)))
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    config = ModelConfig(*(field[name] for name in names), tied=bool(field["tied"]))
    rows, steps, flags = (int(request[i]) for i in (0, 1, 4))
    return needed_bytes(config, field["group_size"], field["weight_bits"], field["kv_bits"],
                        field["slots"], rows, steps, flags=flags, full=False)


device = EmulatedDevice(threads=2)
counts = {"ran": 0, "refused by the device": 0, "refused by the kernel": 0}
for case in range(int(sys.argv[2])):
    config, form = [CONFIG, UNTIED, HALF][rng.integers(3)], FORMATS[rng.integers(5)]
    slots, n_rows, steps = rng.integers(1, 4), rng.integers(1, 5), rng.integers(1, 5)
    flags = int(rng.choice([0, 0, 1, 4, 5, 6, 7]))
    if flags & 2:
        steps = 1
    sizes = needed_bytes(config, *form, int(slots), int(n_rows), int(steps), flags=flags)
    model = model_words(config, form[0], slots, LIMITS.model_words, form[1], form[2])
    request = request_words(
        LIMITS.request_words, (0, config.n_layers), rng.integers(0, 60, n_rows),
        rng.permutation(config.seq_len)[:n_rows], rng.integers(0, slots, n_rows), steps=steps,
        flags=flags, sample=rng.integers(0, 2, n_rows), full=rng.integers(0, 2, n_rows),
        temperature=float(rng.choice([0, 0, 0.7])),
    )
    for _ in range(rng.integers(0, 3)):
        model[rng.integers(2, 15)] = rng.choice(WORDS)
    for _ in range(rng.integers(0, 2)):
        request[rng.integers(0, 6)] = rng.choice(WORDS)
    for _ in range(rng.integers(0, 2)):
        request[48 + rng.integers(0, 40)] = rng.choice(WORDS)
    for _ in range(rng.integers(0, 2)):
        name = rng.choice(sorted(sizes))
        sizes[name] = int(rng.choice([64, sizes[name] // 2, sizes[name] + 4096, 1 << 20]))
    kernel = RawKernel(sizes, device)
    for name in sizes:
        if name not in ("model", "request"):
            kernel.fill(name, rng.integers(0, 256, kernel.buffers[name].size, np.uint8))
    kernel.fill("model", model)
    kernel.fill("request", request)
    try:
        kernel.start()
    except (LlamaPynqError, RuntimeError) as error:
        assert "AP_START refused" in str(error), error
        counts["refused by the device"] += 1
    else:
        status = kernel.finish()
        if int(status[abi.STATUS_ERROR]) in (0, 13):
            counts["ran"] += 1
            have = {name: buffer.size for name, buffer in kernel.buffers.items()}
            need = twin(model, request)
            assert all(need[name] <= have[name] for name in need), (need, have)
        else:
            counts["refused by the kernel"] += 1
    kernel.free()
print(counts)
assert min(counts.values()) > 0, counts
"""


@pytest.mark.parametrize(
    "seed", [0, 77]
)  # 77: a subnormal temperature, which the kernel reads as 0
def test_random_descriptors_and_requests_never_leave_their_buffers(seed):
    """In a process of its own: what leaves a buffer may crash it."""
    emulated_overlay()
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(seed), "400"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{TESTS}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("field", "value", "argument"),
    [("tied", 0, "weights_0"), ("vocab_size", 1 << 19, "weights_0"), ("slots", 4096, "kv_read_0")],
)
def test_wrong_descriptor_is_refused_through_the_driver_too(field, value, argument):
    with LlamaOverlay(device=EmulatedDevice()) as overlay:
        model = overlay.load_model()
        expected = model.generate("Once", max_new_tokens=3, temperature=0).tokens
        words, index = overlay.llama.buffers["model"], abi.MODEL_FIELDS.index(field)
        before = int(words[index])
        words[index] = value
        words.sync_to_device()
        with pytest.raises(KernelError, match=f"AP_START refused: .* argument '{argument}'"):
            model.generate("Once", max_new_tokens=3, temperature=0)
        words[index] = before
        words.sync_to_device()
        assert model.generate("Once", max_new_tokens=3, temperature=0).tokens == expected
