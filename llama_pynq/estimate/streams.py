"""Loaders and their FIFOs: when weights, keys and values arrive from memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama_pynq.boards import Memory
from llama_pynq.kernel.config import KernelConfig

_NO_BEATS = 1e-6
Piece = tuple[float, tuple[float, float]]
"""Cycles, and the beats a cycle of a weight channel and of a KV port."""


@dataclass
class Streams:
    """State of the loaders and their FIFOs: beats buffered, and beats left to fetch.

    Each loader requests a beat a cycle while its FIFO has room. If the requests exceed the
    memory's bandwidth, the loaders share it in proportion. Weight channels run in lockstep: if
    some share their memory bank with a KV port, those set the pace of all.
    """

    memory: Memory
    kernel: KernelConfig
    kv_active: float
    weights_left: float
    kv_left: float
    weights: float = 0.0
    kv: float = 0.0

    def _rates(self, weights: bool, kv: bool) -> tuple[float, float]:
        """Return the beats a cycle of a weight channel and of a KV port, for the active streams."""
        k, m = self.kernel, self.memory
        beat, bank, limit = self._limits()
        asked_w, asked_kv = (k.beat_bytes * beat if weights else 0), (k.kv_beat_bytes * beat * kv)
        total = asked_w * k.channels + asked_kv * self.kv_active
        # KV ports get banks of their own as long as there are any.
        shared = k.channels + k.kv_ports > m.banks and k.kv_ports % m.banks != 0
        busiest = asked_w * max(1.0, k.channels / m.banks) + asked_kv * shared
        scale = min(1.0, limit / total if total else 1.0, bank / busiest if busiest else 1.0)
        return (beat * scale if weights else 0.0), (beat * scale if kv else 0.0)

    def _limits(self) -> tuple[float, float, float]:
        """Return a loader's beats a cycle at most, and the bytes a cycle of a bank and of all."""
        k, m = self.kernel, self.memory
        clock = k.clock_mhz * 1e6
        latency = m.latency_ns * 1e-9 * clock
        beat = min(1.0, k.read_burst_beats * k.read_outstanding / latency)
        bank_ports = m.ports / m.banks * m.port_bytes
        bank = min(m.bank_peak_bytes_per_s * m.efficiency / clock, bank_ports)
        limit = min(m.peak_bytes_per_s * m.efficiency, m.ports * m.port_bytes * clock) / clock
        return beat, bank, limit

    def run(self, cycles: float, weights: float = 0.0, kv: float = 0.0) -> tuple[float, float]:
        """Run a stage that takes `cycles` without stalls and consumes its beats evenly.

        Returns
        -------
        taken, needed : float
            Cycles until the stage is done, and until its last beat has arrived.
        """
        k = self.kernel
        missing = weights - self.weights, kv - self.kv
        wanted = (
            min(self.weights_left, missing[0] + k.weight_fifo_beats),
            min(self.kv_left, missing[1] + k.kv_fifo_beats),
        )
        pieces = self._fetch(wanted)
        needed = max(_time_of(pieces, 0, missing[0]), _time_of(pieces, 1, missing[1]))
        taken = max(cycles, needed)
        got = _beats_by(pieces, 0, taken), _beats_by(pieces, 1, taken)
        self.weights += got[0] - weights
        self.kv += got[1] - kv
        self.weights_left -= got[0]
        self.kv_left -= got[1]
        return taken, needed

    def _fetch(self, wanted: tuple[float, float]) -> list[Piece]:
        """Return the pieces in which the wanted beats arrive: both streams, then the longer one."""
        left = [max(0.0, beats) for beats in wanted]
        pieces = []
        while max(left) > _NO_BEATS:
            rates = self._rates(left[0] > _NO_BEATS, left[1] > _NO_BEATS)
            cycles = min(beats / rate for beats, rate in zip(left, rates) if rate)
            pieces.append((cycles, rates))
            left = [beats - rate * cycles for beats, rate in zip(left, rates)]
        return pieces


@dataclass
class StreamsInTurn(Streams):
    """Streams of a kernel whose KV ports share weight channels' masters: one loader serves both.

    The loader fetches in the order of use, stretch after stretch: weights used after attention
    come after the keys and values. The first request of a stretch is issued once the previous
    stretch has arrived. The shared masters fetch the most, so they set the pace; the card's
    bandwidth is shared in proportion to what each master has to fetch.

    Attributes
    ----------
    stretches : list of (int, float)
        Stretches to fetch: 0 for weights or 1 for keys and values, and the number of beats.
    """

    stretches: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        k, m = self.kernel, self.memory
        beat, bank, limit = self._limits()
        weights, kv = self.weights_left, self.kv_left
        total = weights * k.beat_bytes * k.channels + kv * k.kv_beat_bytes * self.kv_active
        rate = min(beat, bank / k.beat_bytes, limit * (weights + kv) / total)
        latency = m.latency_ns * 1e-9 * k.clock_mhz * 1e6
        self._left = [
            (stream, beats, beats / (beats / rate + latency)) for stream, beats in self.stretches
        ]

    def run(self, cycles: float, weights: float = 0.0, kv: float = 0.0) -> tuple[float, float]:
        before = self.weights_left, self.kv_left
        result = super().run(cycles, weights, kv)
        got = [before[0] - self.weights_left, before[1] - self.kv_left]
        while self._left:
            stream, beats, rate = self._left[0]
            used = min(beats, got[stream])
            got[stream] -= used
            if beats - used > _NO_BEATS:
                self._left[0] = stream, beats - used, rate
                break
            del self._left[0]
        return result

    def _fetch(self, wanted: tuple[float, float]) -> list[Piece]:
        left = list(wanted)
        pieces = []
        for stream, beats, rate in self._left:
            come = min(beats, left[stream])
            left[stream] -= come
            if come > _NO_BEATS:
                pieces.append((come / rate, (0.0, rate) if stream else (rate, 0.0)))
            if beats - come > _NO_BEATS:
                break  # its FIFO is full: the stretches behind it wait
        return pieces


def _time_of(pieces: list[Piece], stream: int, beats: float) -> float:
    """Return the cycles until `beats` of a stream have arrived, at most those of its last piece."""
    time = passed = 0.0
    for cycles, rates in pieces:
        if beats <= _NO_BEATS:
            break
        if rates[stream]:
            used = min(cycles, beats / rates[stream])
            beats -= used * rates[stream]
            time = passed + used
        passed += cycles
    return time


def _beats_by(pieces: list[Piece], stream: int, time: float) -> float:
    """Return the beats of a stream that have arrived after `time` cycles."""
    beats = 0.0
    for cycles, rates in pieces:
        beats += min(cycles, time) * rates[stream]
        time -= min(cycles, time)
    return beats
