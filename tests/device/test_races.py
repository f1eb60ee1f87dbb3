"""One lock for driver and overlay: threads and interrupts leave no state between two others."""

import signal
import threading

import pytest
from fuzz.interrupts import Interrupts, at_line
from fuzz.stress import Stress

from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.device import kernel_driver
from llama_pynq.errors import KernelTimeout, OverlayMismatch, RequestError

pytestmark = pytest.mark.usefixtures("own_locks")

WAIT = 0.2  # seconds in which a thread that waits for no lock would be done


@pytest.fixture
def opened():
    with LlamaOverlay(device=EmulatedDevice(threads=1)) as overlay:
        overlay.load_model()
        yield overlay


def text(overlay):
    return overlay.generate("Once", max_new_tokens=5, seed=1).text


def started(*targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    return threads


def joined(threads):
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_reset_in_the_middle_of_a_load_waits_for_its_end(opened, monkeypatch):
    golden, check, resets = text(opened), kernel_driver.check_fits, []
    buffers, loaded, reached = opened.llama.buffers, threading.Event(), threading.Event()
    allocate = buffers.allocate

    def halfway(name, n, dtype):
        if name == "request":  # of the reset: the model is forgotten, and not yet back
            reached.set()
            loaded.wait(5)
        return allocate(name, n, dtype)

    def interfered(packed, limits):
        if not resets:
            resets.extend(started(opened.reset))
            reached.wait(1)
        return check(packed, limits)

    monkeypatch.setattr(kernel_driver, "check_fits", interfered)
    monkeypatch.setattr(buffers, "allocate", halfway)
    model = opened.load_model()
    loaded.set()
    joined(resets)
    assert opened.llama.loaded_model is model
    assert text(opened) == golden


def test_second_reset_during_the_first_brings_the_model_back_too(opened, monkeypatch):
    golden, model = text(opened), opened.llama.model
    buffers, second = opened.llama.buffers, []
    allocate = buffers.allocate

    def interfered(name, n, dtype):
        if name == "request" and not second:  # the model is forgotten, and not yet back
            second.extend(started(opened.reset))
            second[0].join(WAIT)
        return allocate(name, n, dtype)

    monkeypatch.setattr(buffers, "allocate", interfered)
    opened.reset()
    joined(second)
    assert opened.llama.loaded_model is model
    assert text(opened) == golden


def test_two_loads_at_a_time_leave_one_of_their_models(opened):
    models = []
    for _ in range(5):
        joined(started(*[lambda: models.append(opened.load_model())] * 3))
        assert opened.llama.loaded_model in models[-3:]


def test_cache_is_read_from_one_model(opened, monkeypatch):
    buffers, loads = opened.llama.buffers, []
    opened.generate("Once", max_new_tokens=3, seed=1)
    expected, fetch = opened.llama.read_cache(0, 3).tobytes(), buffers.fetch

    def interfered(name, part):
        if not loads:
            loads.extend(started(lambda: opened.load_model(slots=1, kv_bits=8)))
            loads[0].join(WAIT)
        return fetch(name, part)

    monkeypatch.setattr(buffers, "fetch", interfered)
    assert opened.llama.read_cache(0, 3).tobytes() == expected
    joined(loads)


def test_close_ends_a_load_and_frees_everything(opened, monkeypatch):
    sync, closes = opened.device.flush, []

    def interfered(*args):
        if not closes:
            closes.extend(started(opened.close))
            closes[0].join(WAIT)
        return sync(*args)

    monkeypatch.setattr(opened.device, "flush", interfered)
    with pytest.raises(RequestError, match="the overlay is closed"):
        opened.load_model()
    joined(closes)
    assert opened.device.memory.free_bytes == opened.device.memory.size_bytes


def test_download_loses_the_model_and_says_so(opened):
    golden = text(opened)
    opened.download()
    with pytest.raises(RequestError, match=r"no model is loaded: call load_model\(\)"):
        opened.generate("a")
    opened.load_model()
    assert text(opened) == golden


def test_stream_closed_by_the_collector_waits_for_no_other_thread(opened):
    """The garbage collector may run in a thread that holds what the other one waits for."""
    stream = opened.stream("Once", max_new_tokens=100, seed=1)
    next(stream)
    held, go = threading.Event(), threading.Event()

    def hold():
        with opened.llama.exclusive():
            held.set()
            go.wait(30)

    (holder,) = started(hold)
    held.wait()
    (closer,) = started(stream.close)
    closer.join(10)
    assert not closer.is_alive()
    go.set()
    joined([holder])
    assert opened.llama.model.slots.free == list(range(opened.llama.slots))


# ---- a reset that did not end -----------------------------------------------------------


def failing(error):
    def download(*args, **kwargs):
        raise error

    return download


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OverlayMismatch("damaged")])
def test_reset_that_did_not_end_is_gone_on_with(opened, monkeypatch, error):
    golden, model = text(opened), opened.llama.model
    for then in (opened.reset, opened.load_model):
        with monkeypatch.context() as patch:
            patch.setattr(opened.device, "download", failing(error))
            with pytest.raises(type(error)):
                opened.reset()
        with pytest.raises(RequestError, match=r"reset\(\) of the overlay did not end: call it a"):
            opened.generate("a")
        with pytest.raises(RequestError, match="did not end"):
            opened.llama.run(kernel_driver.abi.make_rows(1))
        then()
        assert (opened.llama.loaded_model is model) == (then == opened.reset)
        assert text(opened) == golden


def test_overlay_closes_after_a_reset_that_did_not_end(opened, monkeypatch):
    monkeypatch.setattr(opened.device, "download", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        opened.reset()
    opened.close()
    assert opened.device.memory.free_bytes == opened.device.memory.size_bytes
    monkeypatch.undo()
    with LlamaOverlay(device=opened.device) as again:
        again.load_model()


def test_close_that_did_not_end_is_gone_on_with():
    for line in range(3, 400, 13):
        overlay = LlamaOverlay(device=EmulatedDevice(threads=1))
        overlay.load_model()
        try:
            with at_line(line):
                overlay.close()
        except KeyboardInterrupt:
            assert overlay.closed
        with LlamaOverlay(device=EmulatedDevice(threads=1)) as again:
            assert again.device.name == "emulated-host"
    with pytest.raises(RequestError, match="is closed"):
        overlay.generate("a")


def test_generation_never_comes_back(opened):
    """Else what was taken under an older one would be valid again."""
    seen = {opened.llama.generation}
    for change in (opened.reset, opened.load_model, lambda: opened.llama.resize_cache(2)) * 3:
        change()
        assert opened.llama.generation not in seen
        seen.add(opened.llama.generation)


def test_hung_describe_is_left_to_its_deadline(opened, monkeypatch):
    driver = opened.llama
    monkeypatch.setattr(driver, "describe_timeout_s", 0.3)
    monkeypatch.setattr(driver.handshake, "finished", lambda: False)
    with pytest.raises(KernelTimeout, match="did not answer its first call"):
        opened.reset()
    monkeypatch.undo()
    opened.reset()
    assert text(opened)


# ---- campaigns: tests/fuzz runs them for longer ------------------------------------------


def test_six_threads_get_whole_texts_or_errors_of_the_package(tmp_path, capsys):
    report = Stress(tmp_path, seed=11).run(rounds=60)
    with capsys.disabled():
        print(f"\nstress: {report}")
    assert not report.wrong
    assert sum(report.done.values()) > 60


# Python prints what an interrupt inside of a destructor raises, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_calls_leave_an_overlay_that_works(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        report = Interrupts(seed=11).run(cases=180)
    finally:
        signal.signal(signal.SIGINT, before)
    with capsys.disabled():
        print(f"\ninterrupts: {report}")
    assert not report.wrong
    assert sum(report.interrupted.values()) > 90
