"""Read copies of a file with one bit flipped: a process of its own, as a reader may crash.

``python flip_bits.py FILE SEED COUNT [FIRST LAST]`` flips each bit of the bytes from FIRST to LAST,
or COUNT bits by SEED, and prints how many copies were read, and how many refused.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from llama_pynq.errors import OverlayMismatch
from llama_pynq.overlay_store.metadata import read_metadata


def main(name: str, seed: str, count: str, *places: str) -> None:
    path, rng = Path(name), random.Random(int(seed))
    good = path.read_bytes()
    if places:
        first, last = map(int, places)
        bits = list(range(8 * first, 8 * last))
    else:
        bits = [rng.randrange(8 * len(good)) for _ in range(int(count))]
    # An .xclbin is read beside others; a .hwh only beside its .bit.
    read = path.with_suffix(".bit") if path.suffix == ".hwh" else path
    passed = 0
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            read_metadata(read)
            passed += 1
        except OverlayMismatch as error:
            assert str(path.parent) in str(error), error
    print("read", passed, "refused", len(bits) - passed)


if __name__ == "__main__":
    main(*sys.argv[1:])
