"""Arguments of the driver's methods: each is named before a register is written."""

import numpy as np
import pytest
from support.kernel_rows import sampled

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.errors import LimitError, RequestError
from llama_pynq.kernel.abi import ROW_DTYPE, RequestFlag, make_rows

INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PYNQ_LOCKS", str(tmp_path_factory.mktemp("locks")))
        with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
            overlay.load_model(slots=2)
            yield overlay


def wide(value, n=1):
    return np.full((n, 128), value, np.float32)


WRONG = {
    "rows": [None, 1, "rows", [1, 2], np.zeros(1), np.zeros((1, 1), ROW_DTYPE), [sampled()],
             np.zeros((), ROW_DTYPE), np.zeros(1, [("token", "<i4")]), np.zeros(1, object)],
    "n_steps": [1.0, True, "1", None, NAN, [1], 1.5, np.float32(1)],
    "layers": [1, "01", (0,), (0, 1, 2), (0.0, 1), (None, None), ("0", "1"), (0, 2**31),
               (-(2**40), 1), (True, False), {}],
    "flags": [1.0, "1", None, True, -1, 8, 2**40, [], RequestFlag.PROFILE | 64],
    "stop_tokens": [1, "1", ["1"], [1.0], [None], (True,), (-1,), (1024,), (2**40,), [[1]], b"1"],
    "activations": [1.0, "x", [1], wide(NAN), wide(INF), wide(0.0, 2), wide(0.0)[:, :64],
                    [[1, 2], [3]], np.full((1, 128), 1e300), wide(0.0).astype(complex),
                    wide(0.0).astype(bool), wide(0.0).astype(object), np.zeros(128, np.float32)],
}  # fmt: skip
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def refused(overlay, call, name):
    with overlay.device.record_registers() as log:
        with pytest.raises((RequestError, LimitError)) as error:
            call()
    assert [access for access in log if access.kind == "write"] == []
    assert name.rstrip("s") in str(error.value) or "stop token" in str(error.value)


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda value: str(value)[:20])
def test_run_refuses_an_argument_of_another_kind(opened, name, value):
    arguments = {"rows": sampled(), name: value}
    refused(opened, lambda: opened.llama.run(**arguments), name)
    if name in ("rows", "n_steps", "stop_tokens"):
        refused(opened, lambda: opened.llama.begin(**arguments), name)
    assert len(opened.llama.run(sampled()).rows) == 1


@pytest.mark.parametrize("value", [0, -1, 65, 2**40])
def test_run_refuses_steps_that_the_kernel_does_not_take(opened, value):
    refused(opened, lambda: opened.llama.run(sampled(), n_steps=value), "n_steps")


def test_run_takes_what_numpy_and_sequences_give(opened):
    expected = opened.llama.run(sampled(), n_steps=2, stop_tokens=(1, 2)).rows.tobytes()
    rows = np.array(sampled().tolist() * 2, dtype=[(n, ROW_DTYPE[n]) for n in ROW_DTYPE.names])[::2]
    for stops in ([1, 2], np.array([1, 2]), iter((1, 2)), range(1, 3), (np.int64(1), 2)):
        found = opened.llama.run(rows, n_steps=np.int32(2), flags=np.uint8(0), stop_tokens=stops)
        assert found.rows.tobytes() == expected
    flags = RequestFlag.PROFILE | RequestFlag.ACTIVATIONS_OUT
    assert opened.llama.run(sampled(), layers=np.array([0, 1]), flags=flags).profile
    opened.llama.run(make_rows(1), layers=[1, 2], activations=[[0.5] * 128])


READS = {
    "read_logits": [("row", (value,)) for value in (None, 1.0, "0", -1, 32, 2**40, True)],
    "read_activations": [("n_rows", (value,)) for value in (None, 1.0, "1", 0, -1, 33, True)],
    "read_cache": [("slot", (value, 1)) for value in (None, 0.0, "0", -1, 2, True, 2**40)]
    + [("positions", (0, value)) for value in (None, 1.0, "1", 0, -1, 2**40, True)],
    "resize_cache": [("slots", (value,)) for value in (None, 1.0, "1", 0, -1, 2**40, True)],
    "finish": [("call", (value,)) for value in (None, 1, "call")],
}


@pytest.mark.parametrize(
    ("method", "name", "arguments"),
    [(method, *case) for method, cases in READS.items() for case in cases],
    ids=str,
)
def test_methods_refuse_what_they_cannot_take(opened, method, name, arguments):
    refused(opened, lambda: getattr(opened.llama, method)(*arguments), name)
    assert opened.generate("Once", max_new_tokens=1).tokens


def test_load_weights_refuses_what_it_cannot_take(opened):
    packed = opened.llama.packed
    for name, arguments in [("packed", (None, 1)), ("packed", ("m.bin", 1)), ("slots", (packed, 0)),
                            ("slots", (packed, 1.5)), ("slots", (packed, "1")),
                            ("kv_bits", (packed, 1, 16)), ("kv_bits", (packed, 1, "8")),
                            ("kv_bits", (packed, 1, 8.0))]:  # fmt: skip
        refused(opened, lambda given=arguments: opened.llama.load_weights(*given), name)
    assert opened.generate("Once", max_new_tokens=1).tokens
