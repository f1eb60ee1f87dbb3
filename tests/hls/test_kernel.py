"""The whole kernel, called through its buffers: bit-identical to `KernelModel`."""

import hashlib
import shlex
import subprocess
from dataclasses import asdict, replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_library import (
    BOARDS,
    HLS_SRC,
    UNTOUCHED,
    KernelSession,
    RandomModel,
    compile_kernels,
    kernel_library,
)
from support.paths import TESTS

from llama_pynq.checkpoint.config import ModelConfig
from llama_pynq.emulation.build import default_compiler
from llama_pynq.kernel import abi
from llama_pynq.kernel.abi import RequestFlag, RowFlag, Stage, State
from llama_pynq.kernel.reference import KernelModel
from llama_pynq.kernel.stages import KEEP_ALL, QuantizedMatrix, Truncation, sample

f32 = np.float32

STREAMS = ("kv260", "pynq_z2", "u280")
BUILDS = [(board, False) for board in BOARDS] + [(board, True) for board in STREAMS]
ODD = ("odd", True)

# Odd sizes: padded groups, heads and vocabulary, grouped queries, four blocks.
CONFIG = ModelConfig(
    dim=72, hidden_dim=101, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=203, seq_len=100,
    tied=False,
)  # fmt: skip
MODEL = RandomModel(CONFIG, 32, seed=1)
PROMPT = [1, 30, 202, 7, 30, 99, 150, 64, 3, 12, 77, 180]


@pytest.fixture(scope="session", autouse=True)
def compiled_side_by_side():
    compile_kernels([*BUILDS, ODD])


def build_name(build):
    return f"{build[0]}-streams" if build[1] else build[0]


def new_session(model=MODEL, board="host", streams=False, threads=1, slots=4, kv_bits=32):
    return KernelSession(kernel_library(board, streams, threads), model, slots, kv_bits)


@pytest.fixture
def session():
    return new_session()


def assert_same_bits(actual, expected, what):
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    different = actual.view(np.uint32) != expected.view(np.uint32)
    at = tuple(int(i) for i in np.argwhere(different)[0]) if different.any() else ()
    assert not different.any(), f"{what} at {at}: {actual[at]!r}, expected {expected[at]!r}"


def per_row(value, n, default):
    return [default if value is None else value] * n if np.ndim(value) == 0 else list(value)


def assert_result(found, logits, temperature, seed, position):
    """Compare one row's result words with the reference's sampling of `logits`."""
    expected = sample(logits, temperature, seed, position, len(found["top"]))
    n = len(expected.top_ids)
    assert (found["token"], found["kept"]) == (expected.token, expected.kept)
    assert found["position"] == position
    assert_same_bits(found["lse"], expected.lse, "lse")
    assert_same_bits(found["lse_temperature"], expected.lse_temperature, "lse_temperature")
    assert_same_bits(found["logit"], logits[expected.token], "logit of the token")
    assert found["top"]["id"].tolist() == expected.top_ids.tolist() + [-1] * (len(found["top"]) - n)
    assert_same_bits(found["top"]["logit"][:n], expected.top_logits, "top logits")


def check_call(session, reference, tokens, positions, slots=None, *, sample=None, temperature=0.0,
               seed=0):  # fmt: skip
    """Make one call of kernel and reference; all results must be identical."""
    n = len(tokens)
    status, results, logits = session.run(
        tokens, positions, slots, sample=sample, temperature=temperature, seed=seed
    )
    assert status[abi.STATUS_STATE] == State.DONE and status[abi.STATUS_STEPS] == 1
    assert status[abi.STATUS_SEQUENCE] == session.library.sequence
    expected = reference.forward(tokens, positions, per_row(slots, n, 0))
    for row in range(n):
        if per_row(sample, n, True)[row]:
            assert_same_bits(logits[row], expected[row], f"logits of row {row}")
            temperatures, row_seeds = per_row(temperature, n, 0.0), per_row(seed, n, 0)
            assert_result(
                results[0, row], expected[row], temperatures[row], row_seeds[row], positions[row]
            )
        else:
            assert results[0, row]["token"] == -1
            assert np.isnan(logits[row]).all()
    return results[0], logits


def prefill(session, tokens, slot=0, at=0):
    """Prefill a prompt in calls of the board's full size; (results, logits) of the last row."""
    step = session.limits.max_rows
    for first in range(0, len(tokens), step):
        part = tokens[first : first + step]
        _, results, logits = session.run(
            part, np.arange(at + first, at + first + len(part)), slot,
            sample=[False] * (len(part) - 1) + [True],
        )  # fmt: skip
    return results[0, -1], logits[-1]


def generate(session, tokens, count, n_steps=1, slot=0, **options):
    """Token ids after a prompt, `n_steps` per call."""
    if len(tokens) > 1:
        prefill(session, tokens[:-1], slot)
    token, position, out = tokens[-1], len(tokens) - 1, []
    while len(out) < count:
        steps = min(n_steps, count - len(out))
        status, results, _ = session.run([token], [position], slot, steps=steps, **options)
        assert status[abi.STATUS_STEPS] == steps
        out += results["token"][:, 0].tolist()
        token, position = out[-1], position + steps
    return out


# ---- kernel = reference -----------------------------------------------------------------


@st.composite
def models(draw):
    kv_heads, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_size = 2 * draw(st.integers(1, 20))
    config = ModelConfig(
        dim=kv_heads * shared * head_size,
        hidden_dim=draw(st.integers(1, 150)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=kv_heads * shared,
        n_kv_heads=kv_heads,
        vocab_size=draw(st.integers(1, 260)),
        seq_len=draw(st.integers(1, 75)),
        tied=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([10000.0, 500000.0, 100.5, 1.0])),
    )
    group_size, weight_bits = draw(st.sampled_from([(32, 8), (64, 8), (64, 4)]))
    return RandomModel(config, group_size, draw(st.integers(0, 1000)), weight_bits)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(model=models(), build=st.sampled_from([("host", False), ("u280", True), ("kv260", False),
       ("pynq_z2", True), ("odd", True)]), kv_bits=st.sampled_from(abi.KV_BITS),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_kernel_equals_reference_for_random_shapes(model, build, kv_bits, seed):
    """Prefill and decode of up to four slots, mixed in calls of up to all rows."""
    rng = np.random.default_rng(seed)
    config, slots = model.config, int(rng.integers(1, 5))
    session = new_session(model, *build, slots=slots, kv_bits=kv_bits)
    reference = KernelModel(model, kv_bits)
    ends = [0] * slots
    rows_left = 80
    while rows_left > 0 and min(ends) < config.seq_len:
        rows = []
        # Slot 0 gets ahead by several blocks.
        for slot in rng.permutation(slots):
            share = 8 if slot == 0 else 3
            for _ in range(int(rng.integers(0, share + 1))):
                if ends[slot] < config.seq_len and len(rows) < session.limits.max_rows:
                    rows.append((int(rng.integers(config.vocab_size)), ends[slot], int(slot)))
                    ends[slot] += 1
        rows_left -= max(len(rows), 1)
        if rows:
            check_call(
                session, reference, *map(list, zip(*(rows[i] for i in rng.permutation(len(rows))))),
                sample=rng.random(len(rows)) < 0.7,
                temperature=rng.choice([0.0, 0.25, 1.0, 3.0], len(rows)).astype(f32).tolist(),
                seed=[int(s) for s in rng.integers(0, 2**64, len(rows), dtype=np.uint64)],
            )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_kernel_of_odd_constants_equals_reference(seed):
    """Blocks of gate units that are not a multiple of the group, and rows that share nothing."""
    model = RandomModel(ModelConfig(64, 330, 2, 4, 2, 90, 40, True), 64, seed)
    session, reference = new_session(model, *ODD), KernelModel(model)
    for first in range(0, 9, 3):
        check_call(session, reference, [5, 6, 7], range(first, first + 3), temperature=0.7)


def test_kernel_equals_reference_over_four_blocks():
    session, reference = new_session(), KernelModel(MODEL)
    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, 100).tolist()
    for first in range(0, 96, 16):
        check_call(session, reference, tokens[first : first + 16], range(first, first + 16),
                   sample=[False] * 15 + [True])  # fmt: skip
    for position in range(96, 100):
        check_call(session, reference, [tokens[position]], [position], temperature=0.9, seed=8)


@pytest.mark.parametrize("board", ["host", "kv260", "u280"])
def test_kernel_equals_reference_with_subnormal_norm_weights(board):
    class Subnormal(RandomModel):
        def vector(self, name, layer=None):
            out = super().vector(name, layer)
            out[::3] *= f32(1e-38)
            return out

    model = Subnormal(CONFIG, 64, seed=5)
    check_call(new_session(model, board), KernelModel(model), [5, 6], [0, 1])


# ---- the same bits for every split into calls -------------------------------------------


@pytest.fixture(scope="module")
def expected_tokens():
    """24 tokens after PROMPT per temperature, from the reference alone."""

    @lru_cache
    def tokens(temperature, seed=99, truncation=KEEP_ALL):
        reference = KernelModel(MODEL)
        reference.forward(PROMPT[:-1], range(len(PROMPT) - 1))
        out = [PROMPT[-1]]
        for position in range(len(PROMPT) - 1, len(PROMPT) + 23):
            logits = reference.forward(out[-1:], [position])[0]
            out.append(sample(logits, temperature, seed, position, 203, truncation).token)
        return out[1:]

    return tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("n_steps", [1, 8, 24])
def test_tokens_same_for_any_n_steps(expected_tokens, n_steps, temperature):
    options = {"temperature": temperature, "seed": 99}
    found = generate(new_session(), PROMPT, 24, n_steps, **options)
    assert found == expected_tokens(temperature)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("truncation", [Truncation(top_k=9), Truncation(0, 0.2, 0.01)])
def test_tokens_truncated_same_for_any_n_steps_and_board(expected_tokens, board, truncation):
    options = {"temperature": 0.7, "seed": 99, **asdict(truncation)}
    session = new_session(board=board)
    found = generate(session, PROMPT, 24, min(8, session.limits.max_steps), **options)
    assert found == expected_tokens(0.7, 99, truncation)


def test_row_whose_truncation_is_undecided_ends_and_leaves_its_logits():
    session = new_session()
    prefill(session, PROMPT[:-1])
    at = len(PROMPT) - 1
    status, results, logits = session.run(
        [PROMPT[-1], 4], [at, 0], [0, 1], steps=3, temperature=[1.0, 0.0], top_k=[100, 0]
    )
    assert status[abi.STATUS_STEPS] == 3
    assert results["token"][:, 0].tolist() == [abi.TOKEN_UNDECIDED] + [abi.TOKEN_NONE] * 2
    assert results["kept"][0, 0] == 0 and (results["token"][:, 1] >= 0).all()
    reference = KernelModel(MODEL)
    reference.forward(PROMPT[:-1], range(at))
    assert_same_bits(logits[0], reference.forward(PROMPT[-1:], [at])[0], "logits")


def test_tokens_differ_with_the_seed_and_its_high_half(expected_tokens):
    runs = [
        generate(new_session(), PROMPT, 24, 8, temperature=1.0, seed=seed)
        for seed in (1, 2, 1 + 2**32)
    ]
    assert len({tuple(run) for run in runs}) == 3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_tokens_same_beside_three_other_sequences(expected_tokens, temperature, n_steps):
    session = new_session()
    prompts = [[4, 9, 200, 61, 5], PROMPT, [88], PROMPT[::-1] + [17, 18, 19]]
    for slot in (2, 0, 3, 1):
        if prompts[slot][:-1]:
            prefill(session, prompts[slot][:-1], slot)
    tokens = [p[-1] for p in prompts]
    positions = np.array([len(p) - 1 for p in prompts])
    out = []
    for _ in range(0, 24, n_steps):
        status, results, _ = session.run(
            tokens, positions, range(4), steps=n_steps, temperature=[0.7, temperature, 0, 1.5],
            seed=[5, 99, 6, 7],
        )  # fmt: skip
        out += results["token"][:, 1].tolist()
        tokens = results["token"][-1].tolist()
        positions = positions + n_steps
    assert out == expected_tokens(temperature)


@pytest.mark.parametrize("split", [[12], [1] * 12, [5, 7], [11, 1], [1, 10, 1]])
def test_prefill_same_however_it_is_split(split):
    session = new_session()
    at = 0
    for n in split:
        result, logits = prefill(session, PROMPT[at : at + n], at=at)
        at += n
    _, results, whole = new_session().run(PROMPT, range(12))
    assert_same_bits(logits, whole[-1], "logits")
    assert result.tobytes() == results[0, -1].tobytes()


def test_prefill_same_for_rows_in_any_order():
    order = np.random.default_rng(1).permutation(12)
    _, _, logits = new_session().run(np.array(PROMPT)[order], order)
    _, _, expected = new_session().run(PROMPT, range(12))
    assert_same_bits(logits, expected[order], "logits")


def test_slot_reused_for_a_new_sequence_forgets_the_old(expected_tokens):
    session = new_session()
    generate(session, [9, 8, 7, 6, 5] * 4, 40, 8, temperature=1.0)
    assert generate(session, PROMPT, 24, 8) == expected_tokens(0.0)


def test_threads_change_no_bit():
    """A model large enough that the threads share the work of every parallel stage."""
    config = ModelConfig(2048, 700, 1, 32, 2, 2100, 64, True)
    model = RandomModel(config, 64, seed=3)
    tokens = np.random.default_rng(4).integers(0, 2100, 48)
    answers = []
    for threads in (1, 2, 3):
        session = new_session(model, threads=threads)
        parts = [
            session.run(tokens[at : at + n], range(at, at + n), temperature=0.9, seed=at,
                        sample=[i % 3 > 0 for i in range(n)])
            for at, n in ((0, 32), (32, 16))
        ]  # fmt: skip
        parts.append(session.run([5], [48], temperature=0.9, steps=8))
        answers.append([(r.tobytes(), logits.tobytes()) for _, r, logits in parts])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("sanitizer", ["", "-fsanitize=thread"])
def test_thread_pool_does_every_task_once_with_late_threads(tmp_path, sanitizer):
    source, program = TESTS / "hls" / "pool.cpp", tmp_path / "pool"
    command = [*shlex.split(default_compiler()), "-std=c++14", "-O2", "-pthread"]
    command += [*sanitizer.split(), f"-I{HLS_SRC}", str(source), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if sanitizer and "cannot find" in compiled.stderr:
        pytest.skip("this compiler has no thread sanitizer")
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this system")
    assert done.returncode == 0, done.stdout + done.stderr


def test_shared_master_brings_everything_in_the_order_of_its_use():
    """In another order it would deadlock: a full FIFO drains only after data not yet loaded."""
    config = ModelConfig(224, 300, 2, 28, 14, 500, 100, False)  # 2 of the 12 ports have two heads
    session = new_session(RandomModel(config, 32, seed=5), "u280", streams=True)
    for at in range(0, 40, 2):
        session.run([7 + at, 8 + at], [at, at])
    session.library.start_stream_log()
    session.run([3, 4], [40, 40], slots=[0, 1])
    written, read = session.library.stream_log()
    channels, kv_ports = session.limits.channels, session.limits.kv_ports
    assert kv_ports == 12 and len(written) == len(read)
    for port in range(kv_ports):  # RunStep creates the streams in this order
        both = [port, channels + port]
        order = written[np.isin(written, both)]
        assert set(order) == set(both)
        assert (np.diff(order) != 0).sum() == 2 * config.n_layers
        assert (order == read[np.isin(read, both)]).all()


@pytest.mark.parametrize("full", [False, True])
def test_full_logits_asked_for_or_not_same_result(session, full):
    _, results, logits = session.run([3, 4], [0, 1], full=[full, not full])
    _, both, _ = session.run([3, 4], [0, 1])
    assert results.tobytes() == both.tobytes()
    assert np.isnan(logits[int(full)]).all() and np.isfinite(logits[1 - int(full)]).all()


def test_host_chooses_returns_the_same_logits_in_any_company():
    """Inputs of the host's top-p: top logits and both log-sum-exps, alone and in a batch."""
    options = {"host_chooses": True, "temperature": 0.8, "full": False}
    prompts = [PROMPT, [5, 6, 7], [8]]
    session = new_session()
    for slot, prompt in enumerate(prompts):
        prefill(session, prompt, slot)
    _, batch, _ = session.run([1, 2, 3], [12, 3, 1], [0, 1, 2], **options)
    for slot, prompt in enumerate(prompts):
        alone = new_session()
        prefill(alone, prompt)
        _, results, _ = alone.run([slot + 1], [len(prompt)], **options)
        assert results[0, 0].tobytes() == batch[0, slot].tobytes()
        assert results[0, 0]["token"] == results[0, 0]["top"]["id"][0]


# ---- every board ------------------------------------------------------------------------

# Hash of every token id, log-sum-exp, top-16 logit and logit of `fixed_calls`. If it changes, the
# arithmetic has changed, and with it the specification.
GOLDEN_TOKENS = "f111429ad7c8a5af38ebcabb02efd8d78399992c421003c1c2fe2a6760a0fd0f"
GOLDEN_LOGITS = "f8ee222930f0a061da3b00207f2059b7e162fab620b57789f0df6cc914190dff"


def run_rows(session, tokens, positions, slots, steps):
    """Results (steps, rows) and logits of one call, or of one call per row if max_rows is 1."""
    rows = range(len(tokens))
    slots = [slots] * len(tokens) if np.ndim(slots) == 0 else slots
    parts = []
    for part in [rows] if len(rows) <= session.limits.max_rows else [[row] for row in rows]:
        status, *found = session.run(
            *([values[row] for row in part] for values in (tokens, positions, slots)),
            steps=steps, temperature=[(0.0, 0.8)[row] for row in part], seed=2**40 + 3,
        )  # fmt: skip
        assert status[abi.STATUS_STATE] == State.DONE
        parts.append(found)
    return (
        np.concatenate([results for results, _ in parts], axis=1),
        np.concatenate([logits for _, logits in parts]),
    )


def fixed_calls(build):
    """Prefill and decode two sequences in calls that every board supports."""
    tokens, digest = [], hashlib.sha256()
    formats = ((32, 8, 32, False), (64, 8, 32, True), (64, 4, 8, True))
    for group_size, weight_bits, kv_bits, tied in formats:
        config = ModelConfig(96, 172, 2, 6, 3, 331, 70, tied)
        model = RandomModel(config, group_size, 7, weight_bits)
        session = new_session(model, *build, slots=2, kv_bits=kv_bits)
        prompt = [(31 * i + 5) % 331 for i in range(38)]
        calls = [(prompt[i : i + 2], [i, i + 1], 0, 1) for i in range(0, 36, 2)]
        calls += [(prompt[i : i + 1], [i], 1, 1) for i in range(3)]
        calls += [([7, 9], [36, 3], [0, 1], 1), ([11, 13], [37, 4], [0, 1], 8)]
        for call in calls:
            results, logits = run_rows(session, *call)
            tokens += results["token"].reshape(-1).tolist()
            digest.update(results["lse"].tobytes() + results["lse_temperature"].tobytes())
            digest.update(np.ascontiguousarray(results["top"][..., :16]).tobytes())
            digest.update(logits.tobytes())
    return tokens, digest.hexdigest()


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
def test_board_gives_the_golden_hash(build):
    tokens, digest = fixed_calls(build)
    assert hashlib.sha256(np.array(tokens, "<i4").tobytes()).hexdigest() == GOLDEN_TOKENS
    assert digest == GOLDEN_LOGITS


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
def test_board_runs_all_rows_and_steps_it_claims(build):
    session = new_session(RandomModel(ModelConfig(32, 32, 1, 2, 1, 40, 100, True), 32), *build,
                          slots=32)  # fmt: skip
    rows, steps = session.limits.max_rows, session.limits.max_steps
    status, results, _ = session.run(range(rows), [0] * rows, range(rows), steps=steps)
    assert status[abi.STATUS_STEPS] == steps
    assert ((results["token"] >= 0) & (results["token"] < 40)).all()
    assert (results["position"] == np.arange(steps)[:, None]).all()


# ---- stopping ---------------------------------------------------------------------------


def first_seen(tokens, at_least):
    """Index, `at_least` or later, of a token that occurs there first."""
    return next(i for i in range(at_least, len(tokens)) if tokens[i] not in tokens[:i])


def test_stop_token_ends_the_call():
    options = {"temperature": 0.9, "seed": 4}
    tokens = generate(new_session(), [1], 16, 16, **options)
    at = first_seen(tokens, 3)
    status, results, _ = new_session().run([1], [0], steps=16, stop=[tokens[at], 202], **options)
    assert status[abi.STATUS_STATE] == State.DONE
    assert status[abi.STATUS_STEPS] == at + 1
    assert results["token"][: at + 1, 0].tolist() == tokens[: at + 1]
    assert (results[at + 1 :].view(np.uint32) == UNTOUCHED).all()


def test_stop_token_of_one_row_leaves_the_others():
    options = {"steps": 12, "temperature": 0.9, "seed": [1, 2, 3]}
    _, free, _ = new_session().run([1, 2, 3], [0, 0, 0], [0, 1, 2], **options)
    tokens = free["token"].T.tolist()
    at = first_seen(tokens[1], 2)
    stop = [tokens[1][at]]
    ends = [row.index(stop[0]) + 1 if stop[0] in row else 12 for row in tokens]
    status, results, _ = new_session().run([1, 2, 3], [0, 0, 0], [0, 1, 2], stop=stop, **options)
    assert status[abi.STATUS_STEPS] == max(ends) > ends[1]
    for row in range(3):
        assert results["token"][: ends[row], row].tolist() == tokens[row][: ends[row]]
        assert (results["token"][ends[row] : max(ends), row] == -1).all()


def test_stop_list_full_of_tokens_all_count():
    tokens = generate(new_session(), [1], 4, 4)
    stop = [300 + i for i in range(15)] + [tokens[0]]
    status, _, _ = new_session().run([1], [0], steps=4, stop=stop)
    assert status[abi.STATUS_STEPS] == 1


def test_end_of_context_ends_the_call(session):
    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, 97).tolist()
    prefill(session, tokens)
    status, results, _ = session.run([5], [97], steps=8)
    assert status[abi.STATUS_STATE] == State.DONE and status[abi.STATUS_STEPS] == 3
    assert results["position"][:3, 0].tolist() == [97, 98, 99]
    assert (results["token"][:3] >= 0).all()


def test_row_that_only_prefills_stops_after_one_step(session):
    status, results, _ = session.run([1, 2], [0, 1], sample=[False, True], steps=3)
    assert status[abi.STATUS_STEPS] == 3
    assert (results["token"][:, 0] == -1).all() and (results["token"][:, 1] >= 0).all()


def test_abort_word_of_this_call_aborts_it(session):
    status, results, _ = session.run([1], [0], steps=4, abort=session.library.sequence + 1)
    assert status[abi.STATUS_STATE] == State.ABORTED
    assert status[abi.STATUS_STEPS] == 0 and status[abi.STATUS_ERROR] == 0
    assert status[abi.STATUS_SEQUENCE] == session.library.sequence
    assert (results.view(np.uint32) == UNTOUCHED).all()


def test_abort_word_of_another_call_is_ignored(session):
    status, _, _ = session.run([1], [0], steps=4, abort=session.library.sequence)
    assert status[abi.STATUS_STATE] == State.DONE and status[abi.STATUS_STEPS] == 4


# ---- part of the layers -----------------------------------------------------------------

IN, OUT = RequestFlag.ACTIVATIONS_IN, RequestFlag.ACTIVATIONS_OUT


@pytest.mark.parametrize("build", [("host", False), ("u280", True), ("kv260", True)],
                         ids=build_name)  # fmt: skip
def test_layers_one_by_one_equal_one_call(build):
    _, whole_results, whole = new_session(MODEL, *build).run([1, 9], [0, 1])
    session, reference = new_session(MODEL, *build), KernelModel(MODEL)
    memory = session.buffers["activations"].reshape(-1)[: 2 * CONFIG.dim].reshape(2, -1)
    x = reference.embed([1, 9])
    for layer in range(CONFIG.n_layers):
        flags = OUT if layer == 0 else IN | OUT
        status, results, logits = session.run([1, 9], [0, 1], layers=(layer, layer + 1),
                                              sample=[False, False], flags=flags)  # fmt: skip
        assert status[abi.STATUS_STATE] == State.DONE
        assert (results["token"] == -1).all() and np.isnan(logits).all()
        x = reference.layer(layer, x, [0, 1], [0, 0])
        assert_same_bits(memory, x, f"residual stream after layer {layer}")
    _, results, logits = session.run([1, 9], [0, 1], layers=(2, 2), flags=IN)
    assert_same_bits(logits, whole, "logits")
    assert results.tobytes() == whole_results.tobytes()


def test_layers_none_from_the_embedding_gives_the_embedding(session):
    session.run([5], [0], layers=(0, 0), sample=[False], flags=OUT)
    expected = KernelModel(MODEL).embed([5])
    assert_same_bits(session.buffers["activations"][:1], expected, "embedding")


def test_layers_before_the_last_do_not_classify(session):
    status, results, logits = session.run([5], [0], layers=(0, 1))
    assert status[abi.STATUS_STATE] == State.DONE
    assert results["token"][0, 0] == -1 and np.isnan(logits).all()


def test_activations_in_replace_the_embedding(session):
    x = np.random.default_rng(6).normal(0, 1, (2, CONFIG.dim)).astype(f32)
    x[0, ::5] = 1e-40  # the host may send subnormals
    session.buffers["activations"].reshape(-1)[: x.size] = x.reshape(-1)
    _, _, logits = session.run([1, 2], [0, 1], flags=IN)
    reference = KernelModel(MODEL)
    for layer in range(CONFIG.n_layers):
        x = reference.layer(layer, x, [0, 1], [0, 0])
    assert_same_bits(logits, reference.classify(x), "logits")


def test_activations_out_change_no_result(session):
    _, results, logits = session.run([1, 2], [0, 1], flags=OUT)
    _, plain, expected = session.run([1, 2], [0, 1])
    assert results.tobytes() == plain.tobytes() and logits.tobytes() == expected.tobytes()


# ---- profile ----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [("host", False), ("u280", True)], ids=build_name)
@pytest.mark.parametrize("classify", [True, False])
def test_profile_names_every_stage_in_order(build, classify):
    session = new_session(MODEL, *build)
    steps = 3 if classify else 1
    session.buffers["profile"][:] = UNTOUCHED
    session.run([1], [0], sample=[classify], steps=steps, flags=RequestFlag.PROFILE)
    layer_stages = range(Stage.ATTENTION_NORM, Stage.DOWN + 1)
    expected = [(Stage.EMBED, 0)]
    expected += [(s, layer) for layer in range(CONFIG.n_layers) for s in layer_stages]
    if classify:
        expected += [(s, CONFIG.n_layers) for s in (Stage.FINAL_NORM, Stage.CLASSIFIER)]
    expected += [(s, CONFIG.n_layers) for s in (Stage.SAMPLE, Stage.END)]
    records = session.buffers["profile"].reshape(-1, session.limits.profile_step_words)
    for record in records[:steps]:
        events = record[2 : 2 + 2 * record[0]].reshape(-1, 2)
        assert [(int(e & 0xFF), int(e >> 8)) for e in events[:, 0]] == expected
        assert (np.diff(events[:, 1].astype(np.int64)) >= 0).all()
    assert (records[steps:] == UNTOUCHED).all()


def test_profile_of_some_layers_names_only_those(session):
    session.run([1], [0], layers=(1, 2), sample=[False], flags=IN | RequestFlag.PROFILE)
    record = session.buffers["profile"]
    events = record[2 : 2 + 2 * record[0] : 2]
    assert {int(e >> 8) for e in events if 1 <= e & 0xFF <= 8} == {1}


def test_profile_off_writes_nothing_and_changes_no_result(session):
    session.buffers["profile"][:] = UNTOUCHED
    _, plain, logits = session.run([1, 2], [0, 1])
    assert (session.buffers["profile"] == UNTOUCHED).all()
    _, profiled, same = session.run([1, 2], [0, 1], flags=RequestFlag.PROFILE)
    assert plain.tobytes() == profiled.tobytes() and logits.tobytes() == same.tobytes()


# ---- errors -----------------------------------------------------------------------------


def row_word(row, name):
    offset = abi.ROW_DTYPE.fields[name][1] // 4
    return abi.REQUEST_ROW_BASE + row * abi.ROW_WORDS + offset


def float_bits(x):
    return int(f32(x).view(np.uint32))


REQUEST_ERRORS = {
    "no rows": (4, 0, {abi.REQUEST_ROWS: 0}),
    "negative rows": (4, -1, {abi.REQUEST_ROWS: -1}),
    "too many rows": (4, 33, {abi.REQUEST_ROWS: 33}),
    "no steps": (5, 0, {abi.REQUEST_STEPS: 0}),
    "too many steps": (5, 65, {abi.REQUEST_STEPS: 65}),
    "steps over some layers": (5, 2, {abi.REQUEST_STEPS: 2, abi.REQUEST_LAYER_END: 1}),
    "steps from activations": (5, 2, {abi.REQUEST_STEPS: 2, abi.REQUEST_FLAGS: IN}),
    "layers backwards": (
        6, 2, {abi.REQUEST_LAYER_BEGIN: 2, abi.REQUEST_LAYER_END: 1,
               abi.REQUEST_FLAGS: IN}
    ),
    "layers past the end": (6, 0, {abi.REQUEST_LAYER_END: 3}),
    "layers before the start": (6, -1, {abi.REQUEST_LAYER_BEGIN: -1}),
    "layer 1 without activations": (6, 1, {abi.REQUEST_LAYER_BEGIN: 1}),
    "token past the vocabulary": (7, 1, {row_word(1, "token"): 203}),
    "token negative": (7, 0, {row_word(0, "token"): -1}),
    "position past the context": (8, 1, {row_word(1, "position"): 100}),
    "position negative": (8, 0, {row_word(0, "position"): -1}),
    "slot past those allocated": (9, 1, {row_word(1, "slot"): 4}),
    "slot negative": (9, 1, {row_word(1, "slot"): -1}),
    "rows the same": (10, 1, {row_word(1, "position"): 0}),
    "temperature negative": (11, 1, {row_word(1, "temperature"): float_bits(-0.5)}),
    "temperature NaN": (11, 0, {row_word(0, "temperature"): float_bits(np.nan)}),
    "temperature infinite": (11, 1, {row_word(1, "temperature"): float_bits(np.inf)}),
    "temperature too high": (11, 1, {row_word(1, "temperature"): float_bits(1.1e6)}),
    "top_k negative": (14, 0, {row_word(0, "top_k"): -1}),
    "top_p above 1": (14, 1, {row_word(1, "top_p"): float_bits(1.001)}),
    "top_p negative": (14, 0, {row_word(0, "top_p"): float_bits(-0.1)}),
    "top_p NaN": (14, 1, {row_word(1, "top_p"): float_bits(np.nan)}),
    "min_p 1": (14, 1, {row_word(1, "min_p"): float_bits(1.0)}),
    "min_p negative": (14, 0, {row_word(0, "min_p"): float_bits(-0.1)}),
    "min_p NaN": (14, 1, {row_word(1, "min_p"): float_bits(np.nan)}),
    "stop list too long": (12, 17, {abi.REQUEST_STOP_TOKENS: 17}),
    "stop list negative": (12, -3, {abi.REQUEST_STOP_TOKENS: -3}),
}  # fmt: skip


def assert_refused(session, status, results, error, detail):
    assert status[abi.STATUS_STATE] == State.ERROR
    assert (status[abi.STATUS_ERROR], status.view(np.int32)[abi.STATUS_DETAIL]) == (
        error,
        detail,
    )
    assert error in abi.ERRORS
    assert status[abi.STATUS_STEPS] == 0
    assert status[abi.STATUS_SEQUENCE] == session.library.sequence
    assert (results.view(np.uint32) == UNTOUCHED).all()


@pytest.fixture(scope="module")
def good_call():
    """Result of a call that must be the same after any error."""
    _, results, logits = new_session().run([1, 2], [0, 1])
    return results.tobytes(), logits.tobytes()


def assert_still_works(session, good_call):
    _, results, logits = session.run([1, 2], [0, 1])
    assert (results.tobytes(), logits.tobytes()) == good_call


@pytest.mark.parametrize("case", REQUEST_ERRORS)
def test_error_in_the_request(session, good_call, case):
    error, detail, patch = REQUEST_ERRORS[case]
    status, results, _ = session.run([1, 2], [0, 1], patch=patch)
    assert_refused(session, status, results, error, detail)
    caches = [b for name, b in session.buffers.items() if name.startswith("kv_cache_")]
    assert all(np.isnan(cache.view(f32)).all() for cache in caches), "the call did write"
    assert_still_works(session, good_call)


def test_error_unknown_command(session, good_call):
    status, results, _ = session.run([1, 2], [0, 1], command=7)
    assert_refused(session, status, results, 1, 7)
    assert_still_works(session, good_call)


FIELD = {name: i for i, name in enumerate(abi.MODEL_FIELDS)}
MODEL_ERRORS = {
    "magic": (2, abi.ABI_VERSION, {"magic": 0}),
    "abi": (2, 99, {"abi": 99}),
    "dim 0": (3, FIELD["dim"], {"dim": 0}),
    "dim over": (3, FIELD["dim"], {"dim": 4098, "n_heads": 1, "n_kv_heads": 1}),
    "hidden_dim 0": (3, FIELD["hidden_dim"], {"hidden_dim": 0}),
    "hidden_dim over": (3, FIELD["hidden_dim"], {"hidden_dim": 14337}),
    "n_layers 0": (3, FIELD["n_layers"], {"n_layers": 0}),
    "n_layers over": (3, FIELD["n_layers"], {"n_layers": 257}),
    "n_heads 0": (3, FIELD["n_heads"], {"n_heads": 0}),
    "n_heads not dividing dim": (3, FIELD["n_heads"], {"n_heads": 7, "n_kv_heads": 7}),
    "head size odd": (3, FIELD["n_heads"], {"n_heads": 8, "n_kv_heads": 8}),
    "head size over": (3, FIELD["n_heads"], {"dim": 516, "n_heads": 2, "n_kv_heads": 2}),
    "n_kv_heads 0": (3, FIELD["n_kv_heads"], {"n_kv_heads": 0}),
    "n_kv_heads over n_heads": (3, FIELD["n_kv_heads"], {"n_kv_heads": 12}),
    "n_kv_heads not dividing n_heads": (3, FIELD["n_kv_heads"], {"n_kv_heads": 4}),
    "vocab_size 0": (3, FIELD["vocab_size"], {"vocab_size": 0}),
    "seq_len 0": (3, FIELD["seq_len"], {"seq_len": 0}),
    "seq_len over": (3, FIELD["seq_len"], {"seq_len": 32769}),
    "group_size 48": (3, FIELD["group_size"], {"group_size": 48}),
    "group_size 128": (3, FIELD["group_size"], {"group_size": 128}),
    "slots 0": (3, FIELD["slots"], {"slots": 0}),
    "cache over what an int counts": (3, FIELD["slots"], {"slots": 65536, "seq_len": 32768}),
    "weight_bits 5": (3, FIELD["weight_bits"], {"weight_bits": 5}),
    "int4 in groups of 32": (3, FIELD["weight_bits"], {"weight_bits": 4, "group_size": 32}),
    "kv_bits 16": (3, FIELD["kv_bits"], {"kv_bits": 16}),
}


@pytest.mark.parametrize("case", MODEL_ERRORS)
def test_error_in_the_model_descriptor(session, good_call, case):
    error, detail, changes = MODEL_ERRORS[case]
    words = session.buffers["model"].copy()
    for name, value in changes.items():
        session.buffers["model"][FIELD[name]] = value
    status, results, _ = session.run([1, 2], [0, 1])
    assert_refused(session, status, results, error, detail)
    session.buffers["model"][:] = words
    assert_still_works(session, good_call)


class Overflowing(RandomModel):
    """A model with one matrix so large that its product is not finite."""

    name, size = "wcls", 2.0**115

    def matrix(self, name, layer=None):
        matrix = super().matrix(name, layer)
        return SimpleNamespace(
            q=matrix.q, group_size=matrix.group_size, bits=matrix.bits,
            scale=matrix.scale * f32(self.size if name == self.name else 1),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["wcls", "wq", "wk", "wv", "wo", "w1", "w2"])
@pytest.mark.parametrize("build", [("host", False), ("u280", True)], ids=build_name)
def test_error_logits_not_finite_wherever_the_overflow_is(build, name):
    model = Overflowing(CONFIG, 32, seed=1)
    model.name, model.size = name, 2.0**125
    session = new_session(model, *build)
    status, results, _ = session.run([1, 2], [0, 1], sample=[False, True], steps=3)
    assert status[abi.STATUS_STATE] == State.ERROR
    assert status[abi.STATUS_ERROR] == 13
    assert status[abi.STATUS_DETAIL] == 1, "must name the row that sampled"
    assert status[abi.STATUS_STEPS] == 1


class OneLogitOverflows(RandomModel):
    """A model with one row of the classifier so large that its product is infinite."""

    row = 0

    def matrix(self, name, layer=None):
        matrix = super().matrix(name, layer)
        if name != "wcls":
            return matrix
        scale = matrix.scale.copy()
        scale[self.row, 0] = 2.0**125
        return QuantizedMatrix(matrix.q, scale, matrix.bits)


@pytest.mark.parametrize("row", [0, 1, 31, 32, 66])
@pytest.mark.parametrize("build", [("host", False), ("u280", True)], ids=build_name)
def test_error_logits_not_finite_if_one_of_them_is_infinite(build, row):
    """Of either sign: the sums of a row do not show -inf."""
    config = replace(CONFIG, tied=False, vocab_size=67)
    signs = set()
    for seed in range(6):
        model = OneLogitOverflows(config, 32, seed=seed)
        model.row = row
        session = new_session(model, *build)
        status, results, logits = session.run([1, 2], [0, 1], sample=[False, True], steps=3)
        assert status[abi.STATUS_ERROR] == 13 and status[abi.STATUS_DETAIL] == 1
        signs.add(float(session.buffers["logits"][1, row]))
    assert signs == {np.inf, -np.inf}


# ---- memory -----------------------------------------------------------------------------


def test_describe_touches_only_the_results(session):
    before = {name: b.copy() for name, b in session.buffers.items() if name != "results"}
    session.buffers["results"][:] = UNTOUCHED
    session.library.call(session.buffers, abi.COMMAND_DESCRIBE)
    for name, content in before.items():
        np.testing.assert_array_equal(session.buffers[name].view(np.uint8), content.view(np.uint8))
    assert (session.buffers["results"][abi.DESCRIBE_WORDS :] == UNTOUCHED).all()


@pytest.mark.parametrize("build", [("host", False), ("u280", True)], ids=build_name)
def test_call_changes_only_its_outputs(build):
    """Inputs stay unchanged; results and logits are written only as far as the contract says."""
    session = new_session(MODEL, *build)
    constant = [n for n in session.buffers if n.startswith("weights_")] + ["model"]
    before = {name: session.buffers[name].copy() for name in constant}
    _, results, _ = session.run([1, 2], [0, 1], sample=[True, False], steps=2)
    for name, content in before.items():
        np.testing.assert_array_equal(session.buffers[name], content)
    used = abi.STATUS_WORDS + 2 * 2 * session.limits.result_dtype.itemsize // 4
    assert (session.buffers["results"][used:] == UNTOUCHED).all()
    assert np.isnan(session.buffers["logits"].reshape(-1)[CONFIG.vocab_size :]).all()


def test_row_flags_are_those_of_the_contract():
    assert (RowFlag.SAMPLE, RowFlag.FULL_LOGITS, RowFlag.HOST_CHOOSES) == (1, 2, 4)
