"""The power recorder: energy of known waveforms, gaps, phases, idle power."""

import math
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama_pynq.measure.power as module
from llama_pynq import EmulatedDevice, LlamaOverlay
from llama_pynq.energy import Energy
from llama_pynq.errors import RequestError
from llama_pynq.measure.power import PowerRecorder, Rail, SensorLost, rails


class Clock:
    """Fake clock that advances only on request."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def recorded(clock, watts, times, **options):
    """Recorder with samples of one rail at these times."""
    rail = Rail("board", "a test", lambda: watts(clock.now), **options)
    recorder = PowerRecorder({"board": rail})
    for clock.now in times:
        recorder.sample()
    return recorder


# ---- energy of a waveform ---------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(
    slope=st.floats(-5, 5),
    start=st.floats(10, 50),
    steps=st.lists(st.floats(0.01, 0.5), min_size=2),
)
def test_energy_of_a_ramp_is_exact_however_it_is_sampled(slope, start, steps):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        times = [100.0]
        for step in steps:
            times.append(times[-1] + step)
        recorder = recorded(clock, lambda t: start + slope * (t - 100), times)
        begin, end = times[0] + steps[0] / 3, times[-1] - steps[-1] / 3
        energy = recorder.energy(begin, end)
    a, b = begin - 100, end - 100
    exact = start * (b - a) + slope * (b * b - a * a) / 2
    assert energy.joules == pytest.approx(exact, rel=1e-6, abs=1e-6)
    assert energy.covered_seconds == pytest.approx(energy.seconds)


@pytest.mark.parametrize("hertz", [0.2, 0.5, 1.0])
def test_energy_of_a_wave_at_10_hz_is_within_half_a_percent(clock, hertz):
    def watts(t):
        return 8 + 3 * math.sin(2 * math.pi * hertz * t)

    times = [100 + i / 10 for i in range(101)]
    energy = recorded(clock, watts, times).energy(100.03, 109.57)

    def primitive(t):
        return 8 * t - 3 * math.cos(2 * math.pi * hertz * t) / (2 * math.pi * hertz)

    assert energy.joules == pytest.approx(primitive(109.57) - primitive(100.03), rel=0.005)


def test_energy_of_a_counter_is_the_sum_of_its_means(clock):
    means = {100.0: 0.0, 101.0: 5.0, 103.0: 20.0}
    recorder = recorded(clock, means.__getitem__, means, is_mean=True)
    assert recorder.energy(100, 103).joules == pytest.approx(5 * 1 + 20 * 2)
    assert recorder.energy(100.5, 102).joules == pytest.approx(5 * 0.5 + 20 * 1)


def test_a_lost_sensor_leaves_a_gap_and_not_a_zero(clock):
    def watts(t):
        if 102 < t < 105:
            raise SensorLost("no answer on the bus")
        return 10.0

    recorder = recorded(clock, watts, [100 + i for i in range(11)])
    energy = recorder.energy(100, 110)
    # No samples between 102 and 105.
    assert energy.covered_seconds == 7 and energy.seconds == 10
    assert energy.joules == pytest.approx(70) and energy.mean_watts == pytest.approx(10)
    assert math.isnan(recorder.watts()[3]) and not recorder.lost


def test_a_sensor_that_never_answers_gives_the_reason(clock):
    def watts(t):
        raise SensorLost("no answer on the bus")

    recorder = recorded(clock, watts, [100, 101, 102])
    assert recorder.energy(100, 102) == (
        "no sample between the two times (board: no answer on the bus)"
    )


def test_rails_that_do_not_count_are_recorded_and_not_added(clock):
    rails = {
        "12V": Rail("12V", "a", lambda: 10.0),
        "core": Rail("core", "b", lambda: 4.0, counts=False),
        "aux": Rail("aux", "c", lambda: 2.0),
    }
    recorder = PowerRecorder(rails)
    for clock.now in (100, 102):
        recorder.sample()
    energy = recorder.energy(100, 102)
    assert energy.joules == pytest.approx(24) and energy.source == "a, c"
    assert recorder.watts("core").tolist() == [4.0, 4.0]


def test_a_modelled_rail_makes_the_energy_modelled(clock):
    recorder = recorded(clock, lambda t: 5.0, [100, 101], measured=False)
    assert recorder.energy(100, 101).kind == "modelled"


def test_a_jump_of_the_wall_clock_changes_nothing(clock, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1e9)
    recorder = recorded(clock, lambda t: 5.0, [100, 101, 102])
    assert recorder.energy(100, 102).joules == pytest.approx(10)


def test_peak_and_mean_are_of_the_stretch_that_was_asked_for(clock):
    recorder = recorded(clock, lambda t: 50.0 if t == 100 else 5.0, [100, 101, 102, 103])
    energy = recorder.energy(101, 103)
    assert (energy.mean_watts, energy.peak_watts) == (5.0, 5.0)
    assert recorder.energy(100, 103).peak_watts == 50.0


def test_energy_per_token_and_in_the_papers_unit():
    energy = Energy(36.0, 10.0, 10.0, 3.6, 5.0, 100, "a test", True, idle_watts=1.6)
    assert energy.joules_per_token == pytest.approx(0.36)
    assert energy.mwh_per_token == pytest.approx(0.1)
    assert energy.joules_above_idle == pytest.approx(20)
    assert math.isnan(Energy(1, 1, 1, 1, 1, 0, "a test", True).joules_per_token)
    assert Energy(1, 1, 1, 1, 1, 1, "a test", True).joules_above_idle is None


# ---- the thread -------------------------------------------------------------------------


def test_recorder_samples_by_itself_and_stops_with_its_block():
    before = threading.active_count()
    with PowerRecorder({"a": Rail("a", "a test", lambda: 7.0)}, rate_hz=200) as recorder:
        time.sleep(0.3)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    times = recorder.times
    assert len(times) >= 5 and (times[1:] > times[:-1]).all()
    assert recorder.energy(times[0], times[-1]).mean_watts == pytest.approx(7)


def test_recorder_measures_idle_power_first():
    watts = iter([2.0] * 10_000)
    with PowerRecorder(
        {"a": Rail("a", "a test", lambda: next(watts))}, 200, idle_s=0.2
    ) as recorder:
        watts = iter([6.0] * 10_000)
        begin = time.perf_counter()
        recorder.sample()
        time.sleep(0.1)
        recorder.sample()
        energy = recorder.energy(begin, time.perf_counter())
    assert energy.idle_watts == pytest.approx(2.0)
    assert energy.joules_above_idle == pytest.approx(4 * energy.covered_seconds, rel=0.2)
    assert [phase.name for phase in recorder.phases] == ["idle"]


def test_recorder_can_be_entered_again_and_not_twice():
    recorder = PowerRecorder({"a": Rail("a", "a test", lambda: 1.0)})
    with recorder, pytest.raises(RequestError, match="already running"):
        recorder.__enter__()
    with recorder:
        pass
    assert len(recorder.times) >= 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(rate_hz=0), "rate_hz is 0: it must be 0.1 to 1000"),
        (dict(rate_hz=math.nan), "rate_hz is nan"),
        (dict(idle_s=-1), "idle_s is -1: it must be 0 to 600"),
    ],
)
def test_recorder_refuses_what_it_cannot_do(options, text):
    with pytest.raises(RequestError, match=text):
        PowerRecorder({"a": Rail("a", "a test", lambda: 1.0)}, **options)


def test_recorder_without_a_rail_says_where_it_looked(tmp_path):
    with LlamaOverlay(device=EmulatedDevice()) as overlay:
        overlay.load_model()
        with PowerRecorder(rails(overlay, powercap=tmp_path)) as recorder:
            out = overlay.generate("Once", max_new_tokens=3, power=recorder)
    assert out.energy is None and len(out.tokens) == 3
    assert "no rail was found" in out.energy_note and f"no zone under {tmp_path}" in out.energy_note


# ---- with generate() --------------------------------------------------------------------


def test_generate_fills_its_energy_and_marks_its_phases():
    with LlamaOverlay(device=EmulatedDevice()) as overlay:
        overlay.load_model()
        with PowerRecorder({"a": Rail("a", "a test", lambda: 9.0)}, rate_hz=100) as recorder:
            batch = overlay.generate(["Once", "One day"], max_new_tokens=9, seed=1, power=recorder)
    energy = batch[0].energy
    assert energy is batch[1].energy and batch[0].energy_note == ""
    assert energy.tokens == sum(len(out.tokens) for out in batch)
    assert energy.mean_watts == pytest.approx(9)
    assert energy.joules_per_token == pytest.approx(9 * energy.seconds / energy.tokens)
    prefill, decode = recorder.phases
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.begin < prefill.end == decode.begin < decode.end
    assert energy.seconds == pytest.approx(decode.end - prefill.begin)


def test_generate_whose_sensor_is_lost_says_why():
    def watts():
        raise SensorLost("unplugged")

    with LlamaOverlay(device=EmulatedDevice()) as overlay:
        overlay.load_model()
        with PowerRecorder({"a": Rail("a", "a test", watts)}) as recorder:
            out = overlay.generate("Once", max_new_tokens=3, power=recorder)
        assert out.energy is None and "unplugged" in out.energy_note
        assert (
            "no power recorder was given" in overlay.generate("Once", max_new_tokens=3).energy_note
        )


def test_energy_as_text_has_its_units_and_its_source():
    energy = Energy(4.0, 2.0, 2.0, 2.0, 3.0, 8, "a meter", measured=True, idle_watts=1.0)
    assert str(energy) == (
        "4 J in 2 s for 8 tokens: 0.5 J (0.139 mWh) a token, mean 2.00 W, peak 3.00 W, "
        "idle 1.00 W; measured: a meter"
    )


def test_ctrl_c_while_idle_power_is_measured_ends_the_sampling(monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    recorder = PowerRecorder({"a": Rail("a", "a test", lambda: 1.0)}, idle_s=5)
    monkeypatch.setattr("llama_pynq.measure.power.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt), recorder:
        pass
    assert not recorder.running
    monkeypatch.setattr("llama_pynq.measure.power.time.sleep", lambda seconds: None)
    with recorder:
        assert recorder.running


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (lambda: math.nan, "it reads nan"),
        (lambda: math.inf, "it reads inf"),
        (lambda: "much", "ValueError: could not convert"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_rail_that_fails_in_its_own_way_is_a_gap_and_leaves_the_others(bad, text):
    recorder = PowerRecorder(
        {"bad": Rail("bad", "a test", bad, counts=False), "good": Rail("good", "b", lambda: 2.0)}
    )
    recorder.sample()
    recorder.sample()
    assert recorder.lost["bad"].startswith(text) and list(recorder.lost) == ["bad"]
    assert math.isnan(recorder.watts("bad")[0])
    begin, end = recorder.times
    assert recorder.energy(begin, end).mean_watts == 2.0


def test_rail_without_any_reading_is_left_out_by_name(clock):
    def broken():
        raise SensorLost("GPU is lost")

    rails_found = {"gpu 0": Rail("gpu 0", "NVML, A", lambda: 30.0),
                   "gpu 1": Rail("gpu 1", "NVML, B", broken)}  # fmt: skip
    recorder = PowerRecorder(rails_found)
    for clock.now in (100.0, 101.0, 102.0):
        recorder.sample()
    energy = recorder.energy(100.0, 102.0)
    assert (energy.joules, energy.peak_watts, energy.covered_seconds) == (60.0, 30.0, 2.0)
    assert energy.source == "NVML, A; without gpu 1: GPU is lost"
    recorder = PowerRecorder({"gpu 1": rails_found["gpu 1"]})
    for clock.now in (100.0, 101.0):
        recorder.sample()
    assert recorder.energy(100.0, 101.0) == ("no sample between the two times (gpu 1: GPU is lost)")
