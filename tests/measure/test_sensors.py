"""Every power sensor, on fake sysfs trees and devices; a missing sensor is explained."""

import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llama_pynq.measure.sensors as module
from llama_pynq import EmulatedDevice
from llama_pynq.errors import RequestError
from llama_pynq.measure.power import PowerRecorder, SensorLost
from llama_pynq.measure.sensors import (
    cpu_rails,
    gpu_rails,
    hwmon_rails,
    meter_rail,
    rails,
)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


# ---- hwmon ------------------------------------------------------------------------------


def kv260(tmp_path):
    write(tmp_path / "hwmon0", name="ams", temp1_input=45000)
    return write(tmp_path / "hwmon1", name="ina260_u14", power1_input=4350000, curr1_input=870)


def test_hwmon_finds_the_kv260s_ina260_in_watts(tmp_path):
    folder = kv260(tmp_path)
    found = hwmon_rails(tmp_path)
    assert list(found) == ["ina260_u14"]
    reading = found["ina260_u14"].read()
    assert (reading.watts, reading.measured, reading.resolution_w) == (4.35, True, 0.01)
    assert reading.source == "hwmon, ina260_u14"
    write(folder, power1_input=5000000)
    assert found["ina260_u14"].watts() == 5.0


def test_hwmon_names_chips_of_one_name_apart_and_reads_labels_and_intervals(tmp_path):
    write(tmp_path / "hwmon0", name="ina226", power1_input=1000000, update_interval=140)
    write(tmp_path / "hwmon1", name="ina226", power1_input=2000000)
    write(tmp_path / "hwmon2", name="psu", power1_input=3000000, power1_label="input")
    found = hwmon_rails(tmp_path)
    assert {name: rail.watts() for name, rail in found.items()} == {
        "ina226": 1, "ina226'": 2, "psu input": 3,
    }  # fmt: skip
    assert found["ina226"].period_s == 0.14 and math.isnan(found["ina226'"].period_s)


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_text("busy"), "holds 'busy': not a number"),
        (lambda file: file.write_text(""), "holds '': not a number"),
    ],
)
def test_hwmon_sensor_that_disappears_is_lost_and_may_come_back(tmp_path, break_it, text):
    folder = kv260(tmp_path)
    rail = hwmon_rails(tmp_path)["ina260_u14"]
    break_it(folder / "power1_input")
    with pytest.raises(SensorLost, match=text):
        rail.watts()
    write(folder, power1_input=1000000)
    assert rail.watts() == 1.0


def test_hwmon_chip_that_cannot_be_read_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("pynq.get_rails", dict)
    kv260(tmp_path)
    write(tmp_path / "hwmon2", name="ina226", power1_input="busy")
    write(tmp_path / "hwmon3", name="psu", power1_input=1000000, update_interval="often")
    found = rails(SimpleNamespace(name="board"), hwmon=tmp_path)
    assert list(found) == ["ina260_u14", "psu"] and math.isnan(found["psu"].period_s)
    assert found.why[-1].startswith("hwmon: ina260_u14, psu; ")
    assert found.why[-1].endswith("hwmon2/power1_input holds 'busy': not a number")


@pytest.mark.parametrize("text", ["nan", "inf", "1e18"])
def test_hwmon_reading_that_no_device_draws_is_lost(tmp_path, text):
    folder = kv260(tmp_path)
    rail = hwmon_rails(tmp_path)["ina260_u14"]
    write(folder, power1_input=text)
    with pytest.raises(SensorLost, match="not a number|no device draws that"):
        rail.watts()


def test_hwmon_permission_denied_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    folder = kv260(tmp_path)
    rail = hwmon_rails(tmp_path)["ina260_u14"]

    def denied(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(SensorLost) as error:
        rail.watts()
    file = folder / "power1_input"
    assert str(error.value) == f"{file}: permission denied. Allow it: sudo chmod a+r {file}"
    # The same at the start: no rail, and the user is told the reason.
    monkeypatch.setattr("pynq.get_rails", dict)
    found = rails(SimpleNamespace(name="board"), hwmon=tmp_path)
    assert not found
    assert found.why[-1] == f"hwmon: {error.value}"


# ---- RAPL -------------------------------------------------------------------------------

RANGE = 262143328850


def packages(tmp_path, **counts):
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram",
        "intel-rapl:1": "psys",
    }  # fmt: skip
    for zone, name in zones.items():
        write(
            tmp_path / zone, name=name, max_energy_range_uj=RANGE, energy_uj=counts.get(name, 1000)
        )
    return tmp_path


def test_rapl_counts_packages_and_memory_and_not_what_is_inside(tmp_path, clock):
    found = cpu_rails(packages(tmp_path))
    assert {name: rail.counts for name, rail in found.items()} == {
        "package-0": True, "package-0 core": False, "dram": True, "psys": False,
    }  # fmt: skip
    assert found["package-0"].is_mean and found["package-0"].source == "RAPL, package-0"


def test_rapl_is_the_mean_since_the_last_reading(tmp_path, clock):
    rail = cpu_rails(packages(tmp_path))["package-0"]
    write(tmp_path / "intel-rapl:0", energy_uj=1000 + 30_000_000)
    clock.now += 2
    assert rail.watts() == pytest.approx(15)
    write(tmp_path / "intel-rapl:0", energy_uj=1000 + 35_000_000)
    clock.now += 1
    assert rail.watts() == pytest.approx(5)


def test_rapl_counter_that_wraps_goes_on(tmp_path, clock):
    rail = cpu_rails(packages(tmp_path, **{"package-0": RANGE - 1_000_000}))["package-0"]
    write(tmp_path / "intel-rapl:0", energy_uj=3_000_000 - 1)
    clock.now += 1
    assert rail.watts() == pytest.approx(4.0)


def test_rapl_energy_of_a_recording_is_the_counters_own(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    zone = packages(tmp_path) / "intel-rapl:0"
    rails_found = {"package-0": cpu_rails(tmp_path)["package-0"]}
    recorder = PowerRecorder(rails_found)
    joules = 0.0
    for step, watts in ((0.1, 0.0), (0.1, 90.0), (0.2, 12.5), (0.05, 40.0), (0.1, 3.0)):
        clock.now += step
        joules += watts * step
        write(zone, energy_uj=1000 + round(joules * 1e6))
        recorder.sample()
    energy = recorder.energy(50.1, clock.now)
    assert energy.joules == pytest.approx(joules, rel=0.005)
    assert energy.covered_seconds == pytest.approx(0.45)


@pytest.mark.parametrize("range_uj", ["0", "-1", "", "unknown", "nan", None])
def test_rapl_counter_without_a_range_has_no_modulus(tmp_path, clock, range_uj):
    """Taken modulo 1, 30 W would be 0 W."""
    zone = packages(tmp_path, **{"package-0": 50_000_000}) / "intel-rapl:0"
    write(zone, max_energy_range_uj=range_uj)
    if range_uj is None:
        (zone / "max_energy_range_uj").unlink()
    rail = cpu_rails(tmp_path)["package-0"]
    write(zone, energy_uj=80_000_000)
    clock.now += 1
    assert rail.watts() == pytest.approx(30)
    write(zone, energy_uj=5_000_000)
    clock.now += 1
    with pytest.raises(SensorLost, match="from 80000000 to 5000000: the counter was set anew"):
        rail.watts()
    write(zone, energy_uj=15_000_000)
    clock.now += 2
    assert rail.watts() == pytest.approx(5)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((2_000_000, 1_999_000), "set anew"),  # a whole turn in a second would be 262 kW
        ((RANGE + 5, 4), "set anew"),  # the range is not this counter's
        ((-1,), "set anew"),
        ((10**15,), "set anew"),
        (("nan",), "not a number"),
        (("inf",), "not a number"),
        ((1000,), "has not moved for 1.0 s"),
    ],
)
def test_rapl_counter_that_cannot_be_believed_is_a_gap(tmp_path, clock, counts, text):
    zone = packages(tmp_path) / "intel-rapl:0"
    rail = cpu_rails(tmp_path)["package-0"]
    *before, last = counts
    for count in before:
        write(zone, energy_uj=count)
        clock.now += 1000  # plausible watts
        assert rail.watts() > 0
    write(zone, energy_uj=last)
    clock.now += 1
    with pytest.raises(SensorLost, match=text):
        rail.watts()


@pytest.mark.parametrize("seconds", [7, 60])
def test_rapl_counter_set_anew_between_samples_far_apart_is_no_turn(tmp_path, clock, seconds):
    zone = packages(tmp_path) / "intel-rapl:0"
    write(zone, max_energy_range_uj=65532610987, energy_uj=1_000_000)
    rail = cpu_rails(tmp_path)["package-0"]
    write(zone, energy_uj=100)
    clock.now += seconds
    with pytest.raises(SensorLost, match="set anew"):
        rail.watts()


def test_rapl_counter_that_stood_still_goes_on_with_the_mean_of_that_time(tmp_path, clock):
    zone = packages(tmp_path) / "intel-rapl:0"
    rail = cpu_rails(tmp_path)["package-0"]
    for _ in range(3):
        clock.now += 1
        with pytest.raises(SensorLost):
            rail.watts()
    write(zone, energy_uj=1000 + 20_000_000)
    clock.now += 1
    assert rail.watts() == pytest.approx(5)
    with pytest.raises(SensorLost, match="read twice at once"):
        rail.watts()


@settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    largest=st.one_of(st.none(), st.integers(10**8, 2**48)),
    start=st.floats(0, 1),
    steps=st.lists(st.tuples(st.integers(10**4, 10**8), st.floats(0.01, 10)), min_size=1),
)
def test_rapl_mean_times_its_interval_is_the_counters_energy(tmp_path, largest, start, steps):
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(now=50.0)
        patch.setattr(module.time, "perf_counter", lambda: clock.now)
        energy = int(start * (largest or 10**9))
        zone = write(tmp_path / "intel-rapl:0", name="package-0", energy_uj=energy,
                     max_energy_range_uj=largest or 0)  # fmt: skip
        rail = cpu_rails(tmp_path)["package-0"]
        for step, seconds in steps:
            energy += step
            if largest:
                energy %= largest + 1
            write(zone, energy_uj=energy)
            clock.now += seconds
            if step * 1e-6 <= 900 * seconds:
                assert rail.watts() * seconds == pytest.approx(step * 1e-6, rel=1e-6)
            elif step * 1e-6 > 1e3 * (seconds + 0.001):
                with pytest.raises(SensorLost):
                    rail.watts()


def test_rapl_zone_that_cannot_be_read_leaves_the_others(tmp_path):
    packages(tmp_path)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("busy")
    (tmp_path / "intel-rapl:0" / "name").unlink()  # and its parts are named after the folder
    found = rails(EmulatedDevice(), powercap=tmp_path)
    assert list(found) == ["intel-rapl:0 core", "dram"]
    assert "name: No such file" in found.why[0] and "holds 'busy': not a number" in found.why[0]


def test_rapl_without_permission_is_explained(tmp_path, monkeypatch):
    packages(tmp_path)
    really = Path.read_text

    def denied(path, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return really(path, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    found = rails(EmulatedDevice(), powercap=tmp_path)
    assert not found
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    assert found.why == [
        f"RAPL of the CPU that emulates: {file}: permission denied. "
        f"Until the next start: sudo chmod a+r {file}"
    ]


def test_rapl_missing_is_explained(tmp_path):
    found = rails(EmulatedDevice(), powercap=tmp_path)
    assert not found and "no zone under" in found.why[0] and "virtual machine" in found.why[0]


def test_emulated_host_is_measured_by_its_own_cpu(tmp_path):
    found = rails(EmulatedDevice(), powercap=packages(tmp_path))
    assert found["package-0"].measured
    assert found.why == ["RAPL of the CPU that emulates: package-0, package-0 core, dram, psys"]


# ---- PYNQ -------------------------------------------------------------------------------


def pynq_rail(name, power=None, voltage=None, current=None):
    def sensor(value):
        return None if value is None else SimpleNamespace(value=value)

    return SimpleNamespace(
        name=name, power=sensor(power), voltage=sensor(voltage), current=sensor(current)
    )


def test_zcu104_is_what_its_12v_input_draws(monkeypatch):
    found = {
        "12V": pynq_rail("12V", power=14.5),
        "INT": pynq_rail("INT", voltage=0.85, current=4.0),
        "TEMP": pynq_rail("TEMP", voltage=1.0),
    }
    monkeypatch.setattr("pynq.get_rails", lambda: found)
    board = rails(SimpleNamespace(name="board"))
    assert {name: rail.counts for name, rail in board.items()} == {"12V": True, "INT": False}
    assert board["12V"].read().watts == 14.5 and board["INT"].watts() == pytest.approx(3.4)
    assert "PMBus through PYNQ's libsensors" in board["12V"].source


def test_board_without_a_configuration_is_read_through_hwmon(tmp_path, monkeypatch):
    monkeypatch.setattr("pynq.get_rails", dict)
    kv260(tmp_path)
    found = rails(SimpleNamespace(name="board"), hwmon=tmp_path)
    assert list(found) == ["ina260_u14"]
    assert found.why[0] == "PYNQ's libsensors: PYNQ has no configuration for this board"


def test_board_without_a_sensor_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("pynq.get_rails", dict)
    found = rails(SimpleNamespace(name="board"), hwmon=tmp_path)
    assert not found and f"no chip under {tmp_path} measures power" in found.why[1]


class FakeCard:
    name = "xilinx_u250"

    def __init__(self, sensors):
        self._sensors = sensors

    @property
    def sensors(self):
        if self._sensors is None:
            raise RuntimeError("no sysfs")
        return self._sensors


def test_alveo_card_is_what_comes_in_and_not_what_is_behind():
    found = rails(
        FakeCard(
            {
                "12v_pex": pynq_rail("12v_pex", voltage=12.0, current=1.5),
                "12v_aux": pynq_rail("12v_aux", voltage=12.0, current=0.5),
                "vccint": pynq_rail("vccint", voltage=0.85, current=10.0),
                "1v8": pynq_rail("1v8", voltage=1.8),
            }
        )
    )
    assert sum(rail.watts() for rail in found.values() if rail.counts) == pytest.approx(24)
    assert found["vccint"].source == "XRT, rail vccint" and "1v8" not in found


def test_zynq_device_is_a_board_and_no_card(tmp_path, monkeypatch):
    # PYNQ's class for Zynq inherits `sensors` from the XRT device.
    from pynq.pl_server.embedded_device import EmbeddedDevice

    assert hasattr(EmbeddedDevice, "sensors")
    monkeypatch.setattr("pynq.get_rails", dict)
    kv260(tmp_path)
    assert list(rails(object.__new__(EmbeddedDevice), hwmon=tmp_path)) == ["ina260_u14"]


def test_pynq_sensor_that_disappears_is_lost():
    class Gone:
        @property
        def value(self):
            raise OSError(19, "No such device")

    rail = SimpleNamespace(name="12v_pex", power=Gone(), voltage=None, current=None)
    with pytest.raises(SensorLost, match="12v_pex: .*No such device"):
        rails(FakeCard({"12v_pex": rail}))["12v_pex"].watts()


@pytest.mark.parametrize("error", [RuntimeError("ioctl"), KeyError("12v_pex_i"), OSError(5, "EIO")])
def test_rail_whose_current_fails_leaves_the_others(error):
    class Broken:
        @property
        def value(self):
            raise error

    aux = SimpleNamespace(name="12v_aux", power=None, voltage=SimpleNamespace(value=12.0),
                          current=Broken())  # fmt: skip
    found = rails(FakeCard({"12v_pex": pynq_rail("12v_pex", power=20.0), "12v_aux": aux}))
    assert found["12v_pex"].watts() == 20.0
    with pytest.raises(SensorLost, match="12v_aux: "):
        found["12v_aux"].watts()


def test_alveo_card_whose_sensors_fail_is_named():
    with pytest.raises(RequestError, match=r"xilinx_u250: XRT gives no sensors \(no sysfs\)"):
        rails(FakeCard(None))


def test_a_reading_that_is_no_number_is_lost():
    found = rails(FakeCard({"12v_pex": pynq_rail("12v_pex", power=math.nan)}))
    with pytest.raises(SensorLost, match="12v_pex reads nan"):
        found["12v_pex"].watts()


# ---- NVML -------------------------------------------------------------------------------


class FakeNvml:
    """Fake NVML with two cards."""

    class NVMLError(Exception):
        pass

    def __init__(self, working=True, **failing):
        self.working, self.milliwatts, self.failing = working, [31000, 126900], failing

    def fail(self, what, handle):
        if self.failing.get(what) == handle:
            raise self.NVMLError(f"{what} fails")

    def nvmlInit(self):  # noqa: N802
        if not self.working:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.fail("handle", index)
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        self.fail("name", handle)
        return b"RTX 3090" if handle else "RTX 3080"

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        if not self.working:
            raise self.NVMLError("GPU is lost")
        self.fail("power", handle)
        return self.milliwatts[handle]


def test_nvml_cards_are_read_in_watts():
    found = gpu_rails(FakeNvml())
    assert {name: rail.watts() for name, rail in found.items()} == {"gpu 0": 31.0, "gpu 1": 126.9}
    assert found["gpu 1"].source == "NVML, RTX 3090"


def test_nvml_without_a_driver_has_no_rail():
    found = gpu_rails(FakeNvml(working=False))
    assert found == {} and found.why == ["NVML: Driver Not Loaded"]


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("handle", "gpu {}: NVML gives no handle: handle fails"),
        ("power", "gpu {}, RTX 30{}0: NVML: power fails"),
        ("name", "gpu {}: NVML gives no name: name fails"),
    ],
)
def test_nvml_card_that_fails_is_named_and_leaves_the_others(gpu, what, text):
    found = gpu_rails(FakeNvml(**{what: gpu}))
    other = f"gpu {1 - gpu}"
    assert found[other].watts() == (126.9, 31.0)[gpu]
    assert found.why == [text.format(gpu, 8 + gpu)]
    if what == "name":  # the power is known all the same
        assert found[f"gpu {gpu}"].source == f"NVML, gpu {gpu}"
    else:
        assert list(found) == [other]


ERRORS = [OSError(5, "EIO"), AttributeError("no such function"), ValueError("NULL"), TypeError()]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_nvml_that_fails_in_another_way_has_no_rail(monkeypatch, function, error):
    def fail(*_):
        raise error

    nvml = FakeNvml()
    monkeypatch.setattr(nvml, function, fail)
    found = gpu_rails(nvml)
    assert found == {} and found.why == [f"NVML: {str(error) or 'TypeError'}"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlDeviceGetPowerUsage"]
)
def test_nvml_card_that_fails_in_another_way_leaves_the_others(monkeypatch, function, error):
    nvml = FakeNvml()
    really = getattr(nvml, function)

    def fail(handle):
        if handle == 0:
            raise error
        return really(handle)

    monkeypatch.setattr(nvml, function, fail)
    found = gpu_rails(nvml)
    assert found["gpu 1"].watts() == 126.9
    assert ("gpu 0" in found) == (function == "nvmlDeviceGetName")
    assert len(found.why) == 1 and found.why[0].startswith("gpu 0")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "it counts 0 cards"), (None, "NoneType"), (-1, "it counts -1 cards")]
)
def test_nvml_without_a_card_says_so(monkeypatch, count, text):
    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlDeviceGetCount", lambda: count)
    found = gpu_rails(nvml)
    assert found == {} and text in found.why[0]


def test_nvml_module_of_another_package_has_no_rail():
    found = gpu_rails(SimpleNamespace())
    assert found == {} and "nvmlInit" in found.why[0]


@pytest.mark.parametrize("power", [-1, None, "much", math.nan])
def test_nvml_power_that_is_none_is_no_reading(power):
    nvml = FakeNvml()
    rail = gpu_rails(nvml)["gpu 0"]
    nvml.milliwatts[0] = power
    with pytest.raises(SensorLost, match="gpu 0, RTX 3080"):
        rail.watts()
    assert list(gpu_rails(nvml)) == ["gpu 1"]


@pytest.mark.parametrize("name", [None, "", b""])
def test_nvml_card_without_a_name_is_named_by_its_number(monkeypatch, name):
    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlDeviceGetName", lambda _: name)
    assert gpu_rails(nvml)["gpu 1"].source == "NVML, gpu 1"


def test_nvml_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_rails().why == ["nvidia-ml-py is not installed: pip install 'llama_pynq[power]'"]


def test_nvml_card_that_falls_off_the_bus_is_lost():
    nvml = FakeNvml()
    rail = gpu_rails(nvml)["gpu 0"]
    nvml.working = False
    with pytest.raises(SensorLost, match="RTX 3080: NVML: GPU is lost"):
        rail.watts()


# ---- an external meter ------------------------------------------------------------------


def test_meter_function_counts_instead_of_all_else():
    found = rails(EmulatedDevice(), meter=lambda: 2.5)
    assert list(found) == ["meter"] and found["meter"].read().watts == 2.5


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: "much", lambda: math.inf])
def test_meter_function_that_fails_is_lost(bad):
    with pytest.raises(SensorLost, match="the meter"):
        meter_rail(bad).watts()


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("time,watts\n1,2.5\n2,2.75\n", 2.75),
        ("Time, Volts, Amperes\n1,5.0,0.5\n2,5.1,0.6\n", 5.1 * 0.6),
    ],
)
def test_meter_file_is_its_last_line(tmp_path, text, watts):
    file = tmp_path / "usb.csv"
    file.write_text(text)
    rail = meter_rail(file)
    assert rail.watts() == pytest.approx(watts) and rail.source == "external meter, usb.csv"


def test_meter_file_that_does_not_grow_is_lost(tmp_path, monkeypatch):
    file = tmp_path / "usb.csv"
    file.write_text("watts\n2.5\n")
    rail = meter_rail(file)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    with pytest.raises(SensorLost, match="has not grown for 10 s: is the meter running"):
        rail.watts()


@pytest.mark.parametrize("content", ["watts\n", "watts\nmany\n", "time,watts\n5\n"])
def test_meter_file_with_a_broken_line_is_lost(tmp_path, content):
    file = tmp_path / "usb.csv"
    file.write_text(content)
    with pytest.raises(SensorLost, match=r"usb\.csv"):
        meter_rail(file).watts()


def test_meter_file_of_something_else_names_the_columns_it_wants(tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="must name a column 'watts', or 'volts' and 'amperes'"):
        meter_rail(file)
    with pytest.raises(RequestError, match=r"none\.csv cannot be read: No such file"):
        meter_rail(tmp_path / "none.csv")


def test_emulated_board_needs_its_overlay_for_a_model():
    with pytest.raises(RequestError, match=r"its model needs the overlay: rails\(overlay\)"):
        rails(EmulatedDevice(board="kv260"))
