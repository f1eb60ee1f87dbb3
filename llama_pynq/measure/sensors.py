"""Sources of a device's power, one per section; `rails` chooses among them.

A well-maintained library reads a source if there is one: PYNQ for Alveo cards and for boards that
it has a configuration of, nvidia-ml-py for NVIDIA cards. Linux's hwmon and powercap are read
directly, as text files: pyRAPL reads Intel packages only, and lm-sensors has no configuration for
a KV260.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from llama_pynq.boards import boards
from llama_pynq.errors import RequestError
from llama_pynq.estimate.power import TERMS, EnergyModel
from llama_pynq.measure.meter_file import MeterFile
from llama_pynq.measure.rails import Rail, SensorLost
from llama_pynq.utils.files import user_path

HWMON = Path("/sys/class/hwmon")
POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float] | str | Path

_NO_TERMS = "nobody published what the board draws when idle, so it has no modelled watts"


class Rails(dict[str, Rail]):
    """Rails by name; `why` lists every source tried with its rails, or why it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.why: list[str] = []

    def take(self, found: Mapping[str, Rail], source: str, nothing: str) -> None:
        """Add the rails of a source, and report them, or why there are none, in `why`."""
        self.update(found)
        lost = found.why if isinstance(found, Rails) else []
        said = [", ".join(found), *lost] if found else lost[:1] or [nothing]
        self.why.append(f"{source}: {'; '.join(said)}")


def rails(
    device: Any,
    meter: Meter | None = None,
    *,
    hwmon: Path = HWMON,
    powercap: Path = POWERCAP,
) -> Rails:
    """Find the rails of a device whose power can be read.

    Parameters
    ----------
    device : pynq.Device or LlamaOverlay
    meter : callable or path, optional
        An external meter: a function that returns watts, or the CSV file that the meter writes
        (`meter_rail`). It replaces all other sources.
    hwmon, powercap : Path
        Linux's folders of these sources.

    Returns
    -------
    Rails
        Empty if nothing can be read; `why` has the reasons.
    """
    found = Rails()
    overlay, device = device, getattr(device, "device", device)
    if meter is not None:
        found["meter"] = meter_rail(meter)
        return found
    states = getattr(device, "capabilities", {})
    if states.get("EMULATED"):
        if device.limits is None:
            none = f"no zone under {powercap}: a virtual machine, another processor, or no module"
            found.take(cpu_rails(powercap), "RAPL of the CPU that emulates", none)
        else:
            rail = _modelled_rail(overlay, device)
            found.take({"board": rail} if rail else {}, "the model", _NO_TERMS)
        return found
    remote = states.get("REMOTE")
    if remote or states.get("PYXRT"):
        # This computer's own sensors do not measure the board.
        what = "PYNQ.remote" if remote else "pyxrt"
        found.take({}, what, "it gives no sensors; an external meter does, rails(..., meter=)")
        return found
    sensors = _sensors_of(device)
    if sensors is not None:
        found.take(
            _alveo_rails(sensors), "XRT", "the card has no voltage and current of its inputs"
        )
        return found
    found.take(_board_rails(), "PYNQ's libsensors", "PYNQ has no configuration for this board")
    if not found:
        found.take(hwmon_rails(hwmon), "hwmon", f"no chip under {hwmon} measures power")
    return found


def _modelled_rail(overlay: Any, device: Any) -> Rail | None:
    driver = getattr(overlay, "llama", None)
    if driver is None:
        raise RequestError(
            f"{device.name} has no sensor, and its model needs the overlay: rails(overlay)"
        )
    board = boards()[device.board]
    if board.name not in TERMS:
        return None
    model = EnergyModel(driver, board)

    def watts() -> float:
        return model.active_watts() if driver.running else model.idle_watts()

    source = f"llama_pynq's model of {board.title}"
    return Rail("board", source, watts, measured=False, model=model)


# ---- PYNQ: boards and Alveo cards -----------------------------------------------------

_INPUTS = ("12v_pex", "12v_aux", "3v3_pex", "3v3_aux")  # of a card: slot and power plug
_BOARD_INPUT = "12V"


def _sensors_of(device: Any) -> dict[str, Any] | None:
    """Return an Alveo card's sensors; None for any other device."""
    from pynq.pl_server.embedded_device import EmbeddedDevice

    # A Zynq's device has this property too, but XRT does not know the board's sensors.
    if isinstance(device, EmbeddedDevice) or not hasattr(type(device), "sensors"):
        return None
    try:
        return dict(device.sensors)
    except Exception as error:  # the type is XRT's, by version; a card without sensors raises none
        raise RequestError(f"{device.name}: XRT gives no sensors ({error})") from error


def _watts_of(rail: Any) -> Callable[[], float] | None:
    """Return the reader of a `pynq.pmbus` rail: its own power, or voltage times current."""
    factors = [rail.power] if rail.power is not None else [rail.voltage, rail.current]
    if None in factors:
        return None

    def watts() -> float:
        try:
            return _sane(math.prod(float(sensor.value) for sensor in factors), rail.name)
        except SensorLost:
            raise
        except Exception as error:  # the type depends on the source: a file, libsensors or XRT
            raise SensorLost(f"{rail.name}: {error}") from error

    return watts


_MOST_WATTS = 1e5
"""A larger reading is a fault: of a sensor, of its unit, or of its scale."""


def _sane(watts: float, name: str) -> float:
    if not math.isfinite(watts):
        raise SensorLost(f"{name} reads {watts}")
    if abs(watts) > _MOST_WATTS:
        raise SensorLost(f"{name} reads {watts:.3g} W: no device draws that")
    return watts


def _alveo_rails(sensors: Mapping[str, Any]) -> dict[str, Rail]:
    found = {}
    for name, rail in sensors.items():
        watts = _watts_of(rail)
        if watts is not None:
            source = f"XRT, rail {name}"
            found[name] = Rail(name, source, watts, period_s=1.0, counts=name in _INPUTS)
    return found


def _board_rails() -> dict[str, Rail]:
    """Rails of a Zynq board that PYNQ has a libsensors configuration for: ZCU104, Ultra96."""
    import pynq

    found = {}
    for name, rail in pynq.get_rails().items():
        watts = _watts_of(rail)
        if watts is not None:
            found[name] = Rail(name, f"PMBus through PYNQ's libsensors, rail {name}", watts)
    if _BOARD_INPUT in found:  # it feeds the others
        for name in found:
            if name != _BOARD_INPUT:
                found[name] = Rail(name, found[name].source, found[name].watts, counts=False)
    return found


# ---- Linux: hwmon and powercap --------------------------------------------------------


def _read(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise SensorLost(f"{path}: permission denied. {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SensorLost(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _number(path: Path, remedy: str) -> float:
    text = _read(path, remedy)
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise SensorLost(f"{path} holds {text[:40]!r}: not a number")


def hwmon_rails(root: Path = HWMON) -> Rails:
    """Rails of every hwmon chip that measures power, such as a KV260's INA260.

    A chip that cannot be read is left out, and named in `why`.

    Parameters
    ----------
    root : Path
        Folder of hwmon0, hwmon1, ...

    References
    ----------
    Linux, Documentation/hwmon/sysfs-interface.rst: power*_input is in microwatts.
    """
    found = Rails()
    for file in sorted(root.glob("hwmon*/power*_input")):
        remedy = _remedy(file)
        label = file.with_name(file.name.replace("_input", "_label"))
        interval = file.parent / "update_interval"
        try:
            _number(file, remedy)
            chip = _read(file.parent / "name", remedy)
        except SensorLost as error:
            found.why.append(str(error))
            continue
        name, period = chip, math.nan
        with contextlib.suppress(SensorLost):  # the power is known without it
            name = f"{chip} {_read(label, remedy)}"
        with contextlib.suppress(SensorLost):
            period = _number(interval, remedy) / 1000
        while name in found:
            name += "'"

        def watts(file: Path = file, remedy: str = remedy) -> float:
            return _sane(_number(file, remedy) * 1e-6, str(file))

        # An INA260 counts in steps of 10 mW (TI, SBOS656).
        resolution = 0.01 if chip.startswith("ina260") else math.nan
        found[name] = Rail(name, f"hwmon, {chip}", watts, True, period, resolution)
    return found


def _remedy(file: Path) -> str:
    return f"Allow it: sudo chmod a+r {file}"


_COUNTER_PERIOD_S = 0.001
_STUCK_S = 1.0  # a thousand periods of RAPL's counter
_MOST_ZONE_WATTS = 1e3
"""A package draws half of that at most; a counter set anew must not pass for one that wrapped."""


class _Counter:
    """Mean power since the last reading, from a microjoule counter that wraps.

    A counter without a plausible range wraps nowhere: if it goes back, it was set anew, and the
    energy in between is unknown.
    """

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._remedy = f"Until the next start: sudo chmod a+r {self._file}"
        self._range: float | None = None
        with contextlib.suppress(SensorLost):  # missing or unreadable
            largest = _number(zone / "max_energy_range_uj", self._remedy)
            self._range = largest if largest > 0 else None
        self._begin(*self._read())

    def _read(self) -> tuple[float, float]:
        return time.perf_counter(), _number(self._file, self._remedy)

    def _begin(self, now: float, count: float) -> None:
        self._time, self._count, self._moved = now, count, now

    def _microjoules(self, count: float) -> float | None:
        """Return the energy since the last reading; None if it is unknown."""
        if min(count, self._count) < 0:
            return None
        if self._range is not None and max(count, self._count) > self._range:
            self._range = None  # not this counter's
        if count >= self._count:
            return count - self._count
        return None if self._range is None else count - self._count + self._range + 1

    def __call__(self) -> float:
        now, count = self._read()
        seconds, energy = now - self._time, self._microjoules(count)
        if energy is None or energy * 1e-6 > _MOST_ZONE_WATTS * (seconds + _COUNTER_PERIOD_S):
            why = f"went from {self._count:.0f} to {count:.0f}"
            self._begin(now, count)
            raise SensorLost(f"{self._file} {why}: the counter was set anew")
        if seconds <= 0:
            raise SensorLost(f"{self._file}: read twice at once")
        if energy == 0 and now - self._moved >= _STUCK_S:
            raise SensorLost(f"{self._file} has not moved for {now - self._moved:.1f} s")
        self._time, self._count = now, count
        if energy:
            self._moved = now
        return energy * 1e-6 / seconds


def cpu_rails(root: Path = POWERCAP) -> Rails:
    """RAPL zones: packages and DRAM count towards the total, zones inside a package do not.

    A zone that cannot be read is left out, and named in `why`.

    Parameters
    ----------
    root : Path
        Folder of intel-rapl:0, intel-rapl:0:0, ...; AMD's processors use the same names.

    References
    ----------
    Linux, Documentation/power/powercap/powercap.rst
    """
    found = Rails()
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            name = _read(zone / "name", "")
            counter = _Counter(zone)
        except SensorLost as error:
            found.why.append(str(error))
            continue
        inside = zone.name.count(":") > 1
        if inside and name != "dram":
            parent = zone.name.rpartition(":")[0]
            with contextlib.suppress(SensorLost):
                parent = _read(root / parent / "name", "")
            name = f"{parent} {name}"
        while name in found:
            name += "'"
        counts = name.startswith("package") and not inside or name.startswith("dram")
        source = f"RAPL, {name}"
        found[name] = Rail(
            name, source, counter, True, _COUNTER_PERIOD_S, counts=counts, is_mean=True
        )
    return found


# ---- NVIDIA ---------------------------------------------------------------------------


def gpu_rails(nvml: Any = None) -> Rails:
    """Rails of NVIDIA cards, through nvidia-ml-py (``pip install 'llama_pynq[power]'``).

    Parameters
    ----------
    nvml : module, optional
        Default: ``pynvml`` from that package.

    Returns
    -------
    Rails
        Of the cards that give a reading. `why` names the others, and what NVML says of them, or
        why there is no card.
    """
    found = Rails()
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            found.why.append("nvidia-ml-py is not installed: pip install 'llama_pynq[power]'")
            return found
        except Exception as error:  # another package of that name
            found.why.append(f"NVML: pynvml cannot be imported: {_said(error)}")
            return found
    # Besides NVMLError, the library's loading and its old versions raise OSError and others.
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        cards = range(count)
    except Exception as error:
        found.why.append(f"NVML: {_said(error)}")
        return found
    if not cards:
        found.why.append(f"NVML: it counts {count} cards")
    for index in cards:
        name = f"gpu {index}"
        try:
            found[name] = _gpu_rail(nvml, index, found.why)
        except SensorLost as error:
            found.why.append(str(error))
    return found


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _gpu_rail(nvml: Any, index: int, why: list[str]) -> Rail:
    """Return a card's rail; a card without a name is read, and reported in `why`.

    Raises
    ------
    SensorLost
        If the card has no handle or no reading.
    """
    card = f"gpu {index}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except Exception as error:
        raise SensorLost(f"{card}: NVML gives no handle: {_said(error)}") from error
    name = card
    try:
        given = nvml.nvmlDeviceGetName(handle)
        name = given.decode("utf-8", "replace") if isinstance(given, bytes) else str(given or "")
        name = name or card
    except Exception as error:
        why.append(f"{card}: NVML gives no name: {_said(error)}")

    def watts() -> float:
        try:
            reading = _sane(float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000, f"{card}, {name}")
        except SensorLost:
            raise
        except Exception as error:
            raise SensorLost(f"{card}, {name}: NVML: {_said(error)}") from error
        if reading < 0:
            raise SensorLost(f"{card}, {name}: NVML reads {reading:g} W: no card gives power")
        return reading

    watts()
    return Rail(card, f"NVML, {name}", watts, True, 0.1, 0.001)


# ---- an external meter ----------------------------------------------------------------

_STALE_S = 10.0


def meter_rail(meter: Meter) -> Rail:
    """Rail of an external meter, such as one in the USB cable of a PYNQ-Z2.

    Parameters
    ----------
    meter : callable or path
        A function that returns watts, or a CSV file that grows while the meter runs. The last line
        that has ended is read, at the time when it is read: a column of times has no effect. The
        header names a column ``watts``, or ``volts`` and ``amperes``; names and units of other
        tools are understood, such as ``Power [mW]``, ``P/W`` or ``bus_voltage_V``, also below a
        preamble of at most 100 lines. A row below the header may give the units; without any they
        are W, V and A. A cell may have its own. The file may be UTF-8, UTF-16 or Windows-1252,
        separated by commas, semicolons, tabs or bars, with decimal commas and with comments
        (``#``, ``;``).

    Raises
    ------
    RequestError
        If the file cannot be read, or its header names no power, or two, or its units cannot be
        applied.
    """
    if callable(meter):

        def watts() -> float:
            try:
                return _sane(float(meter()), "the meter")
            except SensorLost:
                raise
            except Exception as error:  # any exception of a user's function is a missing reading
                raise SensorLost(f"the meter: {error}") from error

        return Rail("meter", "external meter", watts)
    if not isinstance(meter, (str, os.PathLike)):
        raise RequestError(
            f"{type(meter).__name__} given for the meter: give a function or a file's path"
        )
    path = user_path(meter)
    file = MeterFile(path)

    def last_line() -> float:
        try:
            if time.time() - path.stat().st_mtime > _STALE_S:
                raise SensorLost(f"{path} has not grown for {_STALE_S:g} s: is the meter running?")
            return _sane(file.watts(), str(path))
        except OSError as error:
            raise SensorLost(f"{path}: {error}") from error

    return Rail("meter", f"external meter, {path.name}", last_line)
