"""Packed files, and their cache."""

import json
import os
import subprocess
import sys
import threading
import zlib
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from support.checkpoint_files import write_checkpoint
from support.weight_shapes import CONFIG, HALF, TARGETS, UNTIED

from llama_pynq import load_checkpoint
from llama_pynq.errors import CheckpointError
from llama_pynq.kernel.config import Target
from llama_pynq.weights import packed
from llama_pynq.weights.packed import PackedModel, is_packed, open_packed, pack_cached, write_packed
from llama_pynq.weights.quantize import QuantizedModel
from llama_pynq.weights.tiles import channel_bytes, pack_channels

f32 = np.float32


def uploaded(packed: PackedModel, **options: int) -> list[np.ndarray]:
    """All channels as ``upload`` delivers them."""
    channels = []
    for channel, size in enumerate(packed.sizes):
        memory = np.zeros(size, np.uint8)

        def write(at, part, memory=memory):
            memory[at : at + len(part)] = part

        packed.upload(channel, write, **options)
        channels.append(memory)
    return channels


# ---- packed files --------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("config", [CONFIG, UNTIED, HALF])
def test_packed_file_holds_what_pack_channels_makes(new_checkpoint, tmp_path, config, target):
    model = QuantizedModel(new_checkpoint(config))
    path = tmp_path / "folder" / "model.safetensors"
    write_packed(model, target, path, tokenizer=b"tokens\0here")
    assert is_packed(path)
    packed = open_packed(path)
    assert packed.config == config and packed.target == target
    assert packed.group_size == model.group_size and packed.note == model.note
    assert packed.tokenizer == b"tokens\0here"
    assert packed.weight_bytes == sum(packed.sizes)
    for found, expected in zip(uploaded(packed), pack_channels(model, target)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_packed_file_is_one_that_the_safetensors_library_reads(new_checkpoint, tmp_path, target):
    model = QuantizedModel(new_checkpoint())
    path = tmp_path / "m.safetensors"
    write_packed(model, target, path, tokenizer=b"tokens\0here")
    with safe_open(str(path), framework="numpy") as file:
        assert file.metadata()["format"] == "llama_pynq"
        assert file.get_tensor("tokenizer").tobytes() == b"tokens\0here"
        for channel, expected in enumerate(pack_channels(model, target)):
            np.testing.assert_array_equal(file.get_tensor(f"channel_{channel}"), expected)
    # Written again by the library, it is a packed file still, whatever the order in its header.
    again = {f"channel_{c}": part for c, part in enumerate(uploaded(open_packed(path)))}
    again["tokenizer"] = np.frombuffer(b"tokens\0here", np.uint8)
    with safe_open(str(path), framework="numpy") as file:
        save_file(again, str(tmp_path / "again.safetensors"), file.metadata())
    assert is_packed(tmp_path / "again.safetensors")
    rewritten = open_packed(tmp_path / "again.safetensors")
    assert rewritten.crcs == open_packed(path).crcs
    uploaded(rewritten)


def test_packed_file_keeps_rope_theta_to_the_last_bit(new_checkpoint, tmp_path):
    theta = 10000.1 + 1e-9
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint(rope_theta=theta)), Target(2, 32), path)
    assert open_packed(path).config.rope_theta == theta


def test_packed_file_weights_start_on_a_weight_word(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path)
    head = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + head) % 64 == 0


def test_packed_file_without_tokenizer_says_so(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path)
    assert open_packed(path).tokenizer == b""


@pytest.mark.parametrize("slice_bytes", [64, 4096, 5000])
def test_upload_in_slices_gives_the_same_bytes(new_checkpoint, tmp_path, slice_bytes):
    model = QuantizedModel(new_checkpoint())
    path = tmp_path / "m.safetensors"
    write_packed(model, Target(2, 32), path)
    channels = uploaded(open_packed(path), slice_bytes=slice_bytes)
    for found, expected in zip(channels, pack_channels(model, Target(2, 32)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def packed_path(new_checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), path, tokenizer=b"tokenizer")
    return path


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_packed_file_with_a_flipped_bit_is_found_at_upload(packed_path, channel, where):
    packed = open_packed(packed_path)
    data = bytearray(packed_path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + sum(packed.sizes[:channel])
    data[start + int(where * (packed.sizes[channel] - 1))] ^= 0x10
    packed_path.write_bytes(data)
    damaged = open_packed(packed_path)
    damaged.upload(1 - channel, lambda at, part: None)
    with pytest.raises(CheckpointError, match=f"weight channel {channel} is damaged.*checksum"):
        damaged.upload(channel, lambda at, part: None)


@pytest.mark.parametrize("keep", [0, 5, 8, 300, 0.5, -1])
def test_packed_file_truncated_is_refused(packed_path, keep):
    data = packed_path.read_bytes()
    keep = int(keep * len(data)) if isinstance(keep, float) else keep
    packed_path.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def rewrite_header(path, change):
    """Change the metadata of a packed file without changing the header's length."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    assert len(text) <= n
    path.write_bytes(data[:8] + text.ljust(n) + data[8 + n :])


@pytest.mark.parametrize("key", ["pack_version", "abi"])
def test_packed_file_of_another_version_is_refused(packed_path, key):
    rewrite_header(packed_path, lambda h: h["__metadata__"].update({key: "9"}))
    with pytest.raises(CheckpointError, match=r"packed for version \d.\d of the layout, this is"):
        open_packed(packed_path)


def test_packed_file_with_other_sizes_is_refused(packed_path):
    rewrite_header(packed_path, lambda h: h["__metadata__"].update(group_size="32"))
    with pytest.raises(CheckpointError, match="damaged packed model"):
        open_packed(packed_path)


@pytest.mark.parametrize(
    "key", ["config", "group_size", "weight_bits", "channels", "crc32", "note"]
)
def test_packed_file_lacking_metadata_is_refused(packed_path, key):
    rewrite_header(packed_path, lambda h: h["__metadata__"].pop(key))
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def test_packed_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(4, f32)}, str(path), metadata={"format": "pt"})
    assert not is_packed(path)
    with pytest.raises(CheckpointError, match="not a packed model of llama_pynq"):
        open_packed(path)


def test_packed_file_missing_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_packed(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100])
def test_is_packed_of_other_files_is_false(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_packed(path)


def test_is_packed_of_what_cannot_be_read_is_false(tmp_path):
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "none")


def test_write_packed_that_fails_leaves_nothing(new_checkpoint, tmp_path, monkeypatch):
    model = QuantizedModel(new_checkpoint())
    whole = packed.blocks

    def fails(*args):
        yield next(whole(*args))
        raise OSError("the disk is full")

    monkeypatch.setattr(packed, "blocks", fails)
    path = tmp_path / "folder" / "m.safetensors"
    with pytest.raises(OSError, match="the disk is full"):
        write_packed(model, Target(2, 32), path)
    assert list(path.parent.iterdir()) == []


def test_write_packed_that_fails_keeps_the_old_file(new_checkpoint, packed_path, monkeypatch):
    before = packed_path.read_bytes()

    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "blocks", fails)
    with pytest.raises(KeyboardInterrupt):
        write_packed(QuantizedModel(new_checkpoint()), Target(2, 32), packed_path)
    assert packed_path.read_bytes() == before
    assert [p.name for p in packed_path.parent.glob(".m*")] == []


# ---- a header that lies, with the right checksum -----------------------------------------


def with_meta(path, change):
    """Change a packed file's header and correct its checksum; `change` takes the whole header."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    meta, text = header["__metadata__"], data[-len(b"tokenizer") :]
    rest = {key: value for key, value in meta.items() if key != "meta_crc32"}
    crc = zlib.crc32(text, zlib.crc32(json.dumps(rest, sort_keys=True).encode()))
    meta["meta_crc32"] = f"{crc:08x}"
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + n :])


def test_header_with_a_corrected_checksum_is_read(packed_path):
    with_meta(packed_path, lambda header: header["__metadata__"].update(note="another note"))
    assert open_packed(packed_path).note == "another note"


CONFIG_CASES = [
    *(("tied", tied) for tied in (1, 0, 0.5, "0", 4294967296, None, [])),
    *(("dim", dim) for dim in (64.0, "64", True, 0, -64, 1 << 20, (1 << 20) + 1, 1 << 40, None)),
    *(("vocab_size", size) for size in (100.0, 1000, 1 << 31, [100], {})),
    *(("n_layers", n) for n in (2.5, 0, 3, 1 << 20, 1 << 64)),
    *(("n_heads", n) for n in (3, 0, True)),
    *(("rope_theta", theta) for theta in (0, -1.0, True, "10000", None, 10**20 * 10)),
]


@pytest.mark.parametrize(("key", "value"), CONFIG_CASES, ids=str)
def test_packed_file_with_a_wrong_config_is_refused(packed_path, key, value):
    def change(header):
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, key: value})

    with_meta(packed_path, change)
    with pytest.raises(CheckpointError, match="a damaged packed model .*Pack it again"):
        open_packed(packed_path)


TEXT_CASES = [
    ("config", "[" * 100_000), ("config", '{"a":' * 100_000), ("config", "{}"), ("config", "7"),
    ("config", '{"dim": NaN}'), ("config", "9" * 100_000), ("config", ""),
    ("channels", "0"), ("channels", "1"), ("channels", "-2"), ("channels", "2.0"),
    ("channels", "02"), ("channels", " 2"), ("channels", "\u0662"), ("channels", "9" * 30),
    ("channels", "1000000000"), ("channels", "4"), ("channels", ""), ("channels", "1_0"),
    ("tile_rows", "0"), ("tile_rows", "33"), ("tile_rows", "4294967328"),
    ("group_size", "0"), ("group_size", "32"), ("group_size", "128"), ("group_size", "64.0"),
    ("weight_bits", "4"), ("weight_bits", "0"), ("weight_bits", "16"), ("weight_bits", "+8"),
    ("crc32", ""), ("crc32", "00000000"), ("crc32", "0" * 17), ("crc32", "xxxxxxxx,00000000"),
    ("crc32", "+0000000,00000000"), ("crc32", "00000000,00000000,00000000"),
    ("note", "\x1b[2J"), ("another", "key"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text"), TEXT_CASES, ids=lambda text: text[:12])
def test_packed_file_with_wrong_metadata_is_refused(packed_path, key, text):
    with_meta(packed_path, lambda header: header["__metadata__"].update({key: text}))
    with pytest.raises(CheckpointError, match="a damaged packed model .*Pack it again"):
        open_packed(packed_path)


@pytest.mark.parametrize("dtype", ["BOOL", "F8_E4M3", "I8"])
@pytest.mark.parametrize("name", ["channel_0", "channel_1", "tokenizer"])
def test_packed_file_of_another_dtype_is_refused(packed_path, name, dtype):
    with_meta(packed_path, lambda header: header[name].update(dtype=dtype))
    with pytest.raises(CheckpointError, match=f"a damaged packed model .*{name}"):
        open_packed(packed_path)


def test_packed_file_with_tensors_of_other_names_is_refused(packed_path):
    with_meta(packed_path, lambda header: header.update(channel_2=header.pop("channel_1")))
    with pytest.raises(CheckpointError, match="its tensors are .*channel_2"):
        open_packed(packed_path)


def test_packed_file_with_another_shape_of_as_many_bytes_is_refused(packed_path):
    with_meta(
        packed_path, lambda h: h["channel_1"].update(shape=[2, h["channel_1"]["shape"][0] // 2])
    )
    with pytest.raises(CheckpointError, match="channel_1 is U8 .*expected U8"):
        open_packed(packed_path)


VALUES = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=6) | st.integers(-1, 1 << 70)
    | st.lists(st.integers(), max_size=2)
    | st.sampled_from(["0", "1", "2", "4", "8", "16", "32", "64", "true", "1e9", "{}", "[]"])
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_header_is_refused_or_gives_a_model_of_the_files_size(packed_path, data):
    before, content = open_packed(packed_path), packed_path.read_bytes()

    def change(header):
        meta = header["__metadata__"]
        where = data.draw(st.sampled_from(["metadata", "config", "tensor"]))
        if where == "config":
            config = json.loads(meta["config"])
            config[data.draw(st.sampled_from(sorted(config)))] = data.draw(VALUES)
            meta["config"] = json.dumps(config)
        elif where == "metadata":
            meta[data.draw(st.sampled_from(sorted(meta)))] = data.draw(VALUES)
        else:
            tensor = header[data.draw(st.sampled_from(["channel_0", "channel_1", "tokenizer"]))]
            tensor[data.draw(st.sampled_from(sorted(tensor)))] = data.draw(VALUES)

    try:
        with_meta(packed_path, change)
        after = open_packed(packed_path)
    except CheckpointError:
        return
    finally:
        packed_path.write_bytes(content)
    assert after.sizes == before.sizes
    sizes = [getattr(after.config, item.name) for item in fields(after.config)[:7]]
    assert all(type(size) is int and 0 < size <= 1 << 20 for size in sizes)
    assert type(after.config.tied) is bool and type(after.config.rope_theta) is float
    expected = channel_bytes(after.config, after.group_size, after.target, after.weight_bits)
    assert list(after.sizes) == expected


TRUNCATES = """
import sys
from pathlib import Path
from llama_pynq.errors import CheckpointError
from llama_pynq.weights.packed import open_packed
path = Path(sys.argv[1])
packed = open_packed(path)
def write(at, part):
    with path.open("r+b") as file:
        file.truncate(packed.offsets[0] + 64)
try:
    packed.upload(0, write, slice_bytes=64)
except CheckpointError as error:
    print(error)
"""


def test_packed_file_truncated_during_its_upload_is_an_error(packed_path):
    """In a process of its own: with a mapped file this is SIGBUS."""
    done = subprocess.run([sys.executable, "-c", TRUNCATES, packed_path], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"cannot be read any more (it ends at byte" in done.stdout


# ---- the cache -----------------------------------------------------------------------


@pytest.fixture
def packs(monkeypatch):
    """List of the paths that write_packed writes."""
    written = []
    whole = packed.write_packed

    def count(model, target, path, *rest):
        written.append(path)
        whole(model, target, path, *rest)

    monkeypatch.setattr(packed, "write_packed", count)
    return written


def test_pack_cached_second_use_does_not_pack(new_checkpoint, packs, cache):
    checkpoint = new_checkpoint()
    first = pack_cached(checkpoint, Target(2, 32))
    second = pack_cached(checkpoint, Target(2, 32))
    assert len(packs) == 1 and first == second
    assert first.path.parent == cache / "models"


def test_pack_cached_goes_by_content_not_by_name(new_checkpoint, packs):
    pack_cached(new_checkpoint(name="a.bin", seed=1), Target(2, 32))
    pack_cached(new_checkpoint(name="b.bin", seed=1), Target(2, 32))
    assert len(packs) == 1
    pack_cached(new_checkpoint(name="a.bin", seed=2), Target(2, 32))
    assert len(set(packs)) == 2


def test_pack_cached_keeps_every_variant_apart(new_checkpoint, packs):
    for target in TARGETS:
        for size, bits in ((32, 8), (64, 8), (64, 4)):
            for theta in (10000.0, 10000.001, 500000.0):
                packed = pack_cached(new_checkpoint(rope_theta=theta), target, size, bits)
                assert (packed.target, packed.group_size) == (target, size)
                assert packed.weight_bits == bits
                assert packed.config.rope_theta == theta
    assert len(set(packs)) == len(packs) == 27


def test_pack_cached_damaged_file_is_packed_again(new_checkpoint, packs):
    checkpoint = new_checkpoint()
    first = pack_cached(checkpoint, Target(2, 32))
    first.path.write_bytes(first.path.read_bytes()[:-100])
    again = pack_cached(checkpoint, Target(2, 32))
    assert len(packs) == 2
    assert again == first
    uploaded(again)


def test_pack_cached_file_that_another_process_removes_is_packed_again(
    new_checkpoint, packs, monkeypatch
):
    checkpoint, removed = new_checkpoint(), []
    pack_cached(checkpoint, Target(2, 32))

    def opens(path):
        if not removed:
            removed.append(path)
            path.unlink()
        return open_packed(path)

    monkeypatch.setattr(packed, "open_packed", opens)
    uploaded(pack_cached(checkpoint, Target(2, 32)))
    assert len(packs) == 2


def test_pack_cached_rebuild_packs_again(new_checkpoint, packs):
    checkpoint = new_checkpoint()
    pack_cached(checkpoint, Target(2, 32))
    pack_cached(checkpoint, Target(2, 32), rebuild=True)
    assert len(packs) == 2


def test_pack_cached_folder_that_cannot_be_written_is_named(new_checkpoint, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file, not a folder")
    with pytest.raises(CheckpointError, match="cannot write the packed model .*LLAMA_PYNQ_CACHE"):
        pack_cached(new_checkpoint(), Target(2, 32))


def rewritten(path, config, seed):
    """Write another model of the same shape over a file, in place, and keep its time."""
    before, content = path.stat(), write_checkpoint_bytes(path, config, seed)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_checkpoint_bytes(path, config, seed) -> bytes:
    other = path.with_suffix(".other")
    write_checkpoint(other, config, 0, seed=seed)
    content = other.read_bytes()
    other.unlink()
    return content


def test_checkpoint_rewritten_in_place_after_its_hash_is_not_packed(new_checkpoint, cache):
    checkpoint = new_checkpoint(seed=1)
    assert checkpoint.sha256
    rewritten(checkpoint.path, CONFIG, seed=2)
    with pytest.raises(CheckpointError, match="model.bin was changed while it was read"):
        pack_cached(checkpoint, Target(2, 32))
    assert list((cache / "models").iterdir()) == []
    assert pack_cached(load_checkpoint(checkpoint.path), Target(2, 32)).path.exists()


def test_checkpoint_rewritten_while_it_is_packed_gives_no_file(
    new_checkpoint, tmp_path, monkeypatch
):
    checkpoint = new_checkpoint(seed=1)
    whole = packed.blocks

    def rewrites(*args):
        rest = whole(*args)
        yield next(rest)
        rewritten(checkpoint.path, CONFIG, seed=2)
        yield from rest

    monkeypatch.setattr(packed, "blocks", rewrites)
    path = tmp_path / "folder" / "m.safetensors"
    with pytest.raises(CheckpointError, match="model.bin was changed while it was read"):
        write_packed(QuantizedModel(checkpoint), Target(2, 32), path)
    assert list(path.parent.iterdir()) == []


def test_checkpoint_rewritten_at_any_time_never_gets_anothers_name_in_the_cache(tmp_path, cache):
    """Two models take turns in one file while it is loaded again and again."""
    path = tmp_path / "model.bin"
    contents = [write_checkpoint_bytes(path, CONFIG, seed) for seed in (1, 2)]
    expected = {}
    for content in contents:
        path.write_bytes(content)
        with load_checkpoint(path) as checkpoint:
            model = QuantizedModel(checkpoint)
            expected[checkpoint.sha256[:32]] = pack_channels(model, Target(2, 32))
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for content in contents:
                with path.open("r+b") as file:
                    for at in range(0, len(content), 4096):
                        file.seek(at)
                        file.write(content[at : at + 4096])
                        file.flush()
                stop.wait(0.002)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        outcomes = []
        for _ in range(40):
            try:
                with load_checkpoint(path) as checkpoint:
                    pack_cached(checkpoint, Target(2, 32), rebuild=True)
                outcomes.append("packed")
            except CheckpointError as error:
                outcomes.append("changed" if "was changed while" in str(error) else str(error))
    finally:
        stop.set()
        thread.join()
    assert set(outcomes) <= {"packed", "changed"} and "changed" in outcomes
    for file in (cache / "models").iterdir():
        for key, channels in expected.items():
            if file.name.startswith(key):
                for found, part in zip(uploaded(open_packed(file)), channels, strict=True):
                    np.testing.assert_array_equal(found, part)


def test_what_a_killed_load_left_in_the_cache_is_cleared_by_the_next(new_checkpoint, cache):
    checkpoint = new_checkpoint()
    pack_cached(checkpoint, Target(2, 32))
    process = subprocess.Popen(
        [sys.executable, "-c", PACKS_FOREVER, checkpoint.path], stdout=subprocess.PIPE,
        env={**os.environ, "LLAMA_PYNQ_CACHE": str(cache)},
    )  # fmt: skip
    assert process.stdout.readline() == b"packing\n"
    assert len(list((cache / "models").iterdir())) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    packed = pack_cached(checkpoint, Target(2, 32))  # packs nothing: its file is there
    assert list((cache / "models").iterdir()) == [packed.path]


PACKS_FOREVER = """
import sys, time
from llama_pynq import load_checkpoint
from llama_pynq.kernel.config import Target
from llama_pynq.weights import packed
whole = packed.blocks
def blocks(*args):
    yield next(whole(*args))
    print("packing", flush=True)
    time.sleep(600)
packed.blocks = blocks
packed.pack_cached(load_checkpoint(sys.argv[1]), Target(2, 32), rebuild=True)
"""


# ---- changed files -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(config=meta["config"].replace("10000", "10300")),
        lambda meta: meta.update(note="measured on a board"),
        lambda meta: meta.update(crc32=meta["crc32"][:8]),
        lambda meta: meta.pop("crc32"),
    ],
    ids=["rope_theta", "note", "crc32-short", "crc32-gone"],
)
def test_packed_file_with_a_changed_description_is_refused(packed_path, change):
    rewrite_header(packed_path, lambda header: change(header["__metadata__"]))
    with pytest.raises(CheckpointError, match="a damaged packed model"):
        open_packed(packed_path)


def test_packed_file_with_a_changed_tokenizer_is_refused(packed_path):
    data = bytearray(packed_path.read_bytes())
    assert open_packed(packed_path).tokenizer
    data[-1] ^= 1  # the tokenizer is last in the file
    packed_path.write_bytes(data)
    with pytest.raises(CheckpointError, match="wrong checksum of its metadata and tokenizer"):
        open_packed(packed_path)
