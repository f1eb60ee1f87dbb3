"""The kernel under g++'s sanitizers: whole calls, valid and not, of several boards and threads."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz.mutators import FLOATS, INTEGERS, integer
from support.kernel_library import UNTOUCHED, KernelSession, RandomModel, request_words
from support.paths import HLS_SRC, TESTS
from support.sanitized import SanitizedKernel, build, compiler, run

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import RequestFlag, State

# Streams run their processes one after the other: there is no race to find in that build.
BUILDS = [("address", "host", False), ("address", "u280", True), ("address", "odd", True),
          ("thread", "host", False)]  # fmt: skip
MODELS = 12
INVALID = 25
DESCRIPTORS = 40
"""Models of each build; for each, calls with a damaged request, or with a damaged descriptor."""


@pytest.fixture(scope="module", params=BUILDS, ids=lambda b: f"{b[0]}-{b[1]}" + "-streams" * b[2])
def kernel(request, tmp_path_factory):
    sanitizer, board, streams = request.param
    return SanitizedKernel(tmp_path_factory.mktemp("kernel"), sanitizer, board, streams)


def random_model(rng: Random) -> RandomModel:
    """A model of random shape: padded groups, heads and vocabulary, shared heads, tied or not."""
    kv_heads, shared = rng.randint(1, 3), rng.randint(1, 3)
    config = ModelConfig(
        dim=kv_heads * shared * 2 * rng.randint(1, 20),
        hidden_dim=rng.randint(1, 150),
        n_layers=rng.randint(1, 2),
        n_heads=kv_heads * shared,
        n_kv_heads=kv_heads,
        vocab_size=rng.randint(1, 260),
        seq_len=rng.randint(1, 75),
        tied=rng.random() < 0.5,
    )
    group, bits = rng.choice(((32, 8), (64, 8), (64, 4)))
    return RandomModel(config, group, rng.randrange(1000), bits)


def valid_calls(session: KernelSession, rng: Random) -> int:
    """Prefill and decode a slot up to the context's end; returns the number of calls."""
    config, limits = session.config, session.limits
    at = calls = 0
    slot = rng.randrange(2)
    while at < config.seq_len and calls < 6:
        n = min(rng.choice((1, 2, limits.max_rows)), limits.max_rows, config.seq_len - at)
        steps = rng.choice((1, min(3, limits.max_steps, config.seq_len - at))) if n == 1 else 1
        share = 0.7 if steps == 1 else 1.0  # a row that ends early leaves positions unwritten
        tokens = [rng.randrange(config.vocab_size) for _ in range(n)]
        status, *_ = session.run(
            tokens, range(at, at + n), slot, steps=steps,
            sample=[rng.random() < share for _ in range(n)], full=rng.random() < 0.5,
            temperature=rng.choice((0.0, 0.7, 2.0)), seed=rng.randrange(2**63),
            top_k=rng.choice((0, 3, 100)), top_p=rng.choice((1.0, 0.4)),
            min_p=rng.choice((0.0, 0.1)), flags=rng.choice((0, int(RequestFlag.PROFILE))),
            stop=rng.choice(((), (0, 1))) if steps == 1 else (),
        )  # fmt: skip
        assert status[abi.STATUS_STATE] == State.DONE, status
        at += steps if n == 1 else n
        calls += 1
    return calls


def damaged_call(session: KernelSession, rng: Random) -> int:
    """One call with odd words in its request; returns its state."""
    n = rng.choice((1, 2, session.limits.max_rows))
    words = {}
    rows = range(abi.REQUEST_ROW_BASE, abi.REQUEST_ROW_BASE + n * abi.ROW_WORDS)
    for _ in range(rng.choice((1, 1, 2, 4))):
        where = rng.choice((range(6), range(abi.REQUEST_STOP_LIST, abi.REQUEST_ROW_BASE), rows))
        value = rng.choice((*INTEGERS, *(int(np.float32(f).view(np.uint32)) for f in FLOATS)))
        words[rng.choice(where)] = value
    length, flags = session.config.seq_len, rng.choice((0, *map(int, RequestFlag)))
    status, *_ = session.run(
        [0] * n, [i % length for i in range(n)], [i // length for i in range(n)],
        patch=words, flags=flags, command=rng.choice((abi.COMMAND_RUN,) * 9 + (7,)),
    )  # fmt: skip
    return int(status[abi.STATUS_STATE])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_calls_leave_nothing_to_report(kernel, request, count):
    rng, states, calls = Random(1), [], 0
    with kernel.start(threads=3) as process:
        for _ in range(MODELS):
            model, kv_bits = random_model(rng), rng.choice((32, 8))
            session = KernelSession(process, model, slots=32, kv_bits=kv_bits)
            calls += valid_calls(session, rng)
            states += [damaged_call(session, rng) for _ in range(INVALID)]
    assert set(states) <= set(State)
    # Damage that is no damage to the kernel, as a seed's, is computed; most is refused.
    assert states.count(State.ERROR) > len(states) / 2
    name = request.node.callspec.id
    count(f"{name}, calls of {MODELS} models", calls)
    count(f"{name}, damaged requests ({states.count(State.ERROR)} refused)", len(states))


def test_descriptors_that_the_emulator_lets_through_stay_in_their_buffers(kernel, request, count):
    if (kernel.sanitizer, kernel.board) != ("address", "host"):
        pytest.skip("one build is enough")
    if "emulator_start_within" not in (HLS_SRC / "host" / "emulator.cpp").read_text():
        pytest.skip("this kernel checks no sizes")
    rng, refused, computed = Random(2), 0, 0
    with kernel.start(threads=2, within=True) as process:
        for _ in range(MODELS):
            session = KernelSession(process, random_model(rng), slots=3)
            usual = session.buffers["model"].copy()
            for _ in range(DESCRIPTORS):
                words = session.buffers["model"]
                words[:] = usual
                for _ in range(rng.choice((1, 1, 2))):
                    at = rng.choice((*range(len(abi.MODEL_FIELDS)), rng.randrange(len(words))))
                    words[at] = np.uint32(integer(rng, int(words[at])) & 0xFFFFFFFF)
                status, *_ = session.run([0, 0], [0, 1])
                refused += int(status[abi.STATUS_MAGIC] == UNTOUCHED)
                computed += int(status[abi.STATUS_STATE] == State.DONE)
    assert refused and computed
    name = request.node.callspec.id
    count(f"{name}, odd descriptors ({refused} over a buffer, {computed} computed)",
          MODELS * DESCRIPTORS)  # fmt: skip


def test_large_model_is_shared_by_threads_without_a_report(kernel, request, count):
    """Large enough that the threads share the work of every parallel stage."""
    if kernel.board != "host":
        pytest.skip("the host's build alone has threads")
    config = ModelConfig(512, 700, 1, 8, 2, 1100, 64, True)
    with kernel.start(threads=4) as process:
        session = KernelSession(process, RandomModel(config, 64, seed=3))
        for at in range(0, 32, 16):
            status, *_ = session.run(list(range(16)), range(at, at + 16), temperature=0.9)
            assert status[abi.STATUS_STATE] == State.DONE
        status, *_ = session.run([5], [32], temperature=0.9, steps=8)
        assert status[abi.STATUS_STATE] == State.DONE
    count(f"{request.node.callspec.id}, calls of a large model on 4 threads", 3)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_thread_pool_leaves_nothing_to_report(tmp_path, sanitizer, count):
    program = tmp_path / "pool"
    build([*compiler(sanitizer), "-std=c++14", "-O2", "-g1", "-pthread", f"-I{HLS_SRC}",
           TESTS / "hls" / "pool.cpp", "-o", program])  # fmt: skip
    done = run([program])
    assert done.returncode == 0, done.stdout + done.stderr
    count(f"{sanitizer}, runs of a pool of 8 threads", 50_000)


# ---- the job finds faults -------------------------------------------------------------


def report_of(kernel: SanitizedKernel, logits_bytes: int | None = None) -> str:
    """What the sanitizer says of some calls, with a buffer of logits of that size."""
    config = ModelConfig(128, 256, 1, 4, 2, 300, 64, True)
    with pytest.raises(AssertionError) as caught, kernel.start(threads=3) as process:
        session = KernelSession(process, RandomModel(config, 64, seed=3))
        if logits_bytes is not None:
            session.buffers["logits"] = np.zeros(logits_bytes // 4, np.float32)
        words = session.buffers["request"]
        words[:] = request_words(len(words), (0, 1), [7], [0])
        for _ in range(8):
            process.call(session.buffers, abi.COMMAND_RUN)
    return str(caught.value)


def damaged_emulator(folder: Path, old: str, new: str) -> Path:
    """A copy of host/emulator.cpp with one line changed."""
    text = (HLS_SRC / "host" / "emulator.cpp").read_text()
    assert text.count(old) == 1, f"emulator.cpp no longer has {old!r}: choose another line"
    source = folder / "emulator.cpp"
    source.write_text(text.replace(old, new))
    return source


def test_a_write_past_a_buffers_end_is_reported(kernel):
    if kernel.sanitizer != "address":
        pytest.skip("the thread sanitizer does not look at bounds")
    said = report_of(kernel, logits_bytes=4 * 300 - 4)
    assert "AddressSanitizer: heap-buffer-overflow" in said and "WRITE" in said


def test_undefined_behaviour_is_reported(kernel, tmp_path):
    if (kernel.sanitizer, kernel.board) != ("address", "host"):
        pytest.skip("one build is enough")
    old = "std::chrono::microseconds(timeout_us)"
    source = damaged_emulator(tmp_path, old, old.replace("us)", "us * 4096)"))
    said = report_of(kernel.with_emulator(source))
    assert "runtime error: signed integer overflow" in said and "emulator.cpp" in said


def test_a_race_is_reported(tmp_path):
    """A counter that the pool's threads increment without a lock."""
    text = (HLS_SRC / "host" / "thread_pool.h").read_text()
    old = "  void Share() {\n"
    assert text.count(old) == 1, "thread_pool.h has no Share() any more: choose another line"
    header, program = tmp_path / "host" / "thread_pool.h", tmp_path / "pool"
    header.parent.mkdir()
    header.write_text(text.replace(old, f"{old}    static long shares = 0;\n    ++shares;\n"))
    build([*compiler("thread"), "-std=c++14", "-O1", "-g1", "-pthread", f"-I{tmp_path}",
           TESTS / "hls" / "pool.cpp", "-o", program])  # fmt: skip
    said = run([program]).stderr
    assert "ThreadSanitizer: data race" in said and "Share" in said
