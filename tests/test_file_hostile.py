"""Files that are damaged or made to do harm: one ValueError that names the file, before any large allocation."""

import hashlib
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxopt_compress import export
from jaxopt_compress.encoded import Quantized
from jaxopt_compress.grids import Integers

MOST = 50 * 2**20  # bytes that refusing a file of less than 10 kB may take


def deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def container(header: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + body


def forge(model, *sections: bytes, text: str | None = None, digest: str | None = None, **other) -> bytes:
    """Write a file by hand, from the description of the format: by default with the right checksum.

    Args:
      model: the node of the manifest.
      sections: as they are stored.
      text: the whole manifest, instead.
      digest: instead of the right one.
      other: `names` and `dtype` of the tensors, `metadata`, `version`.
    """
    text = json.dumps({"version": other.get("version", 1), "model": model}) if text is None else text
    hashed = hashlib.sha256(text.encode())
    for section in sections:
        hashed.update(struct.pack("<Q", len(section)) + section)
    head = (hashed.hexdigest() if digest is None else digest) + text
    header: dict = {"__metadata__": other.get("metadata", {"jaxopt_compress": head})}
    ends = np.cumsum([0, *map(len, sections)]).tolist()
    for name, start, end in zip(other.get("names", map(str, range(len(sections)))), ends, ends[1:]):
        header[name] = {"dtype": other.get("dtype", "U8"), "shape": [end - start], "data_offsets": [start, end]}
    return container(json.dumps(header), b"".join(sections))


def array(shape, *hows, dtype="uint8", coding="dense", count=None):
    return [dtype, shape, coding, *([] if count is None else [count]), *(hows or ["raw"])]


def sparse(shape, count, *hows, dtype="uint8"):
    return array(shape, *(hows or ["raw", "raw"]), dtype=dtype, coding="sparse", count=count)


def quantized(codes, scale=("float32", [], "dense", "raw"), dtype="float32"):
    return ["quantized", dtype, codes, list(scale)]


def deep(depth: int) -> str:
    return '{"version":1,"model":' + '["list",' * depth + "1" + "]" * depth + "}"


ONE = struct.pack("<f", 1)


def gridded(grid, codes="uint4", code=b"\1", scale=(), zero=None, zero_shape=()):
    """Return a file of version 2 with two codes on a grid."""
    node = ["quantized", "float32", grid, array([2], dtype=codes), array(list(scale), dtype="float32")]
    zeros = [] if zero is None else [array(list(zero_shape), dtype=zero)]
    sections = [code, b"" if 0 in scale else ONE, *(b"\1" if zero == "int8" else ONE for _ in zeros)]
    return forge({"a": [*node, *zeros]}, *sections, version=2)


MIB = bytes(2**20)
BOMB = deflate(bytes(9_000_000))  # 9 kB

HOSTILE = {
    # the container
    "nothing": (b"", "too few"),
    "7 bytes": (b"1234567", "too few"),
    "text": (b"This is no model, and it is long enough.", "announces a header"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "announces a header"),
    "zip": (b"PK\x03\x04" + bytes(60), "announces a header|no safetensors"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "announces a header of 100"),
    "header of 2^64": (b"\xff" * 16, "announces a header"),
    "header of 20 MB": (struct.pack("<Q", 20 * 2**20) + b"{}", "announces a header"),
    "header without JSON": (container("nothing", b"x"), "no safetensors file"),
    "header with a list": (container("[1]"), "no safetensors file"),
    "header nested": (container("[" * 5000), "no safetensors file"),
    "metadata nested": (container('{"__metadata__":' + '{"a":' * 1500), "no safetensors file"),
    "header not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', "no safetensors file"),
    "no metadata": (container("{}"), "`save` did not write it"),
    "metadata of others": (forge(1, metadata={"format": "pt"}), "`save` did not write it"),
    "empty metadata": (forge(1, metadata={"jaxopt_compress": ""}), "`save` did not write it"),
    "digest only": (forge(1, metadata={"jaxopt_compress": "0" * 64}), "`save` did not write it"),
    "tensor beyond the end": (forge(array([3]), b"abc")[:-1], "no safetensors file"),
    "bytes after the end": (forge(array([3]), b"abc") + b"x", "no safetensors file"),
    "tensor of another dtype": (forge(array([3]), b"abc", dtype="I8"), "not flat arrays of bytes"),
    "tensor of another name": (forge(array([3]), b"abc", names=["a"]), "not named 0, 1, 2"),
    "tensor 0 twice": (forge(array([3]), b"abc", b"abc", names=["0", "0"]), "no safetensors|SHA-256|sections"),
    "tensor with two axes": (
        container('{"0":{"dtype":"U8","shape":[1,3],"data_offsets":[0,3]}}', b"abc"),
        "not flat arrays",
    ),
    "huge tensor": (
        container('{"0":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,3]}}'),
        "no safetensors",
    ),
    # the manifest
    "wrong digest": (forge(array([3]), b"abc", digest="0" * 64), "SHA-256"),
    "digest in capitals": (forge(1, digest=hashlib.sha256(b"").hexdigest().upper()), "SHA-256"),
    "short digest": (forge(1, digest="abc"), "SHA-256|did not write it"),
    "no JSON": (forge(None, text="nothing"), "not the JSON that `save` writes"),
    "JSON cut off": (forge(None, text='{"version":1,"model":'), "not the JSON"),
    "two values": (forge(None, text='{"version":1,"model":1}{}'), "not the JSON"),
    "NaN": (forge(None, text='{"version":1,"model":NaN}'), "the number NaN"),
    "Infinity": (forge(None, text='{"version":1,"model":-Infinity}'), "the number -Infinity"),
    "a JSON float": (forge(1.5), "the number 1.5"),
    "a huge int": (forge(None, text='{"version":1,"model":' + "9" * 5000 + "}"), "not the JSON"),
    "an int of 65 bits": (forge(2**64), "more than 64 bits"),
    "version 3": (forge(1, version=3), r"version is 3; this library reads \(1, 2\)"),
    "version true": (forge(1, version=True), "version is True"),
    "version of text": (forge(1, version="1"), "version is '1'"),
    "huge version": (forge(1, version=10**4000), "version is 1000000"),
    "no version": (forge(None, text='{"model":1}'), "version is None"),
    "no object": (forge(None, text="[1]"), "version is None"),
    "no model": (forge(None, text='{"version":1}'), "not `version` and `model`"),
    "another entry": (forge(None, text='{"version":1,"model":1,"code":"x"}'), "not `version` and `model`"),
    "nested too deep": (forge(None, text=deep(101)), "nested deeper than 100"),
    "nested absurdly deep": (forge(None, text=deep(700)), "nested deeper than 100|nested too deeply"),
    "JSON bomb of brackets": (forge(None, text="[" * 9000), "nested too deeply"),
    "deep shape": (
        forge(None, text='{"version":1,"model":["uint8",' + "[" * 800 + "]" * 800 + ',"dense","raw"]}'),
        "shape",
    ),
    # the structure
    "a key twice": (forge(None, text='{"version":1,"model":{"a":1,"a":2}}'), "twice among .'a'"),
    "an int key twice": (forge({"a": ["dict", [1, 1], 2, 3]}), "'a' has a key twice"),
    "a path twice": (forge({"a/b": 1, "a": {"b": 2}}), "two leaves have the path 'a/b'"),
    "mixed keys": (forge(["dict", [1, "a"], 2, 3]), "nothing that this library knows"),
    "a key too many": (forge(["dict", [1, 2], 2]), "nothing that this library knows"),
    "keys of true": (forge(["dict", [True], 2]), "nothing that this library knows"),
    "node of text": (forge({"a": "text"}), "'a' is nothing that this library knows: 'text'"),
    "empty list": (forge({"a": []}), "'a' is nothing"),
    "list in list": (forge({"a": [[]]}), "'a' is nothing"),
    "unknown node": (forge({"a": ["set", 1]}), r"'a' is nothing that this library knows: \['set', 1\]"),
    "a reference": (forge({"a": ["alias", "a"]}), "'a' is nothing"),
    "float of 15 digits": (forge({"a": ["float", "0" * 15]}), "'a' is nothing"),
    "float with blanks": (forge({"a": ["float", " 0" * 8]}), "'a' is nothing"),
    # arrays
    "unknown dtype": (forge({"a": array([3], dtype="float31")}, b"abc"), "'a' has the unknown dtype 'float31'"),
    "object dtype": (forge({"a": array([3], dtype="object")}, b"abc"), "unknown dtype"),
    "dtype of codes": (forge({"a": array([8], dtype="int3")}, b"abc"), "unknown dtype"),
    "unknown coding": (forge({"a": array([3], coding="rle")}, b"abc"), "'a' is nothing .*'rle'"),
    "unknown how": (forge({"a": array([3], "lzma")}, b"abc"), "'a' has a section that is .*'lzma'"),
    "how of a list": (forge({"a": array([3], ["raw"])}, b"abc"), "'a' has a section that is"),
    "negative axis": (forge({"a": array([-3])}, b"abc"), r"'a' has the shape \[-3\]"),
    "axis of true": (forge({"a": array([True])}, b"a"), "'a' has the shape"),
    "axis of text": (forge({"a": array(["3"])}, b"abc"), "'a' has the shape"),
    "axis of a list": (forge({"a": array([[3]])}, b"abc"), "'a' has the shape"),
    "huge axis": (forge({"a": array([2**63])}, b"abc"), "'a' has the shape"),
    "65 axes": (forge({"a": array([1] * 65)}, b"a"), "'a' has the shape"),
    "product wraps to 0": (forge({"a": array([2**32, 2**32])}, b""), "'a' has a section of 0 bytes"),
    "product wraps to 3": (forge({"a": array([2**62, 4, 3])}, b"abc"), "'a' has a section of 3 bytes"),
    "empty but huge": (forge({"a": array([0, 2**62])}, b""), "`max_bytes` raises it"),
    "short": (forge({"a": array([4])}, b"abc"), "'a' has a section of 3 bytes .* 4"),
    "long": (forge({"a": array([2])}, b"abc"), "'a' has a section of 3 bytes .* 2"),
    "short bits": (forge({"a": array([9], dtype="bool")}, b"a"), "'a' has a section of 1 bytes .* 2"),
    "section left over": (forge({"a": array([1])}, b"a", b"b"), "speaks of 1 sections; the file has 2"),
    "section missing": (forge({"a": array([1]), "b": array([1])}, b"a"), "speaks of 2 sections; the file has 1"),
    # deflate
    "no deflate stream": (forge({"a": array([3], "deflate")}, b"\xff\xff"), "'a' has a section that does not inflate"),
    "cut off": (forge({"a": array([99], "deflate")}, deflate(bytes(range(99)))[:-9]), "does not end after exactly 99"),
    "too much": (forge({"a": array([98], "deflate")}, deflate(bytes(range(99)))), "does not end after exactly 98"),
    "too little": (forge({"a": array([99], "deflate")}, deflate(bytes(range(98)))), "does not end after exactly 99"),
    "something behind": (forge({"a": array([99], "deflate")}, deflate(bytes(99)) + b"x"), "does not end after"),
    "zlib header": (forge({"a": array([99], "deflate")}, zlib.compress(bytes(99))), "'a' has a"),
    "bomb in a small array": (forge({"a": array([9], "deflate")}, BOMB), "does not end after exactly 9 "),
    "bomb in nothing": (forge({"a": array([0], "deflate")}, BOMB), "does not end after exactly 0 "),
    "claim of 4 GB": (forge({"a": array([2**32], "deflate")}, BOMB), "cannot hold 4294967296"),
    "claim of 10^18": (forge({"a": array([10**18], "deflate")}, BOMB), "cannot hold 1000000000000000000"),
    # sparse
    "too few ones": (forge({"a": sparse([8], 3)}, b"\x03", b"abc"), "'a' has a mask of 2 ones"),
    "too many ones": (forge({"a": sparse([8], 1)}, b"\x03", b"a"), "'a' has a mask of 2 ones"),
    "ones beyond the end": (forge({"a": sparse([7], 2)}, b"\x81", b"ab"), "ones beyond its end"),
    "more entries than places": (forge({"a": sparse([8], 9)}, b"\xff", b"123456789"), "'a' has 9 non-zero entries"),
    "negative count": (forge({"a": sparse([8], -1)}, b"\0", b""), "'a' has -1 non-zero entries"),
    "count of true": (forge({"a": sparse([8], True)}, b"\1", b"a"), "'a' is nothing"),
    "huge count": (forge({"a": sparse([2**40], 2**39)}, b"\1", b"a"), "'a' has a section of 1 bytes"),
    "mask of one section": (forge({"a": sparse([8], 1, "raw")}, b"\1"), "'a' is nothing"),
    "mask bomb": (
        forge({"a": sparse([72_000_000], 1, "deflate", "raw", dtype="float32")}, BOMB, ONE),
        "'a' has a mask of 0 ones",
    ),
    # stored forms
    "code -128": (
        forge({"a": quantized(array([2], dtype="int8"))}, b"\x80\1", ONE),
        r"'a' has codes outside \[-127, 127\]",
    ),
    "code -8": (forge({"a": quantized(array([2], dtype="int4"))}, b"\x81", ONE), r"'a' has codes outside \[-7, 7\]"),
    "code -2, sparse": (
        forge({"a": quantized(sparse([4], 1, dtype="int2"))}, b"\1", b"\2", ONE),
        r"'a' has codes outside \[-1, 1\]",
    ),
    "codes of 9 bits": (forge({"a": quantized(array([1], dtype="int9"))}, b"ab", ONE), "unknown dtype 'int9'"),
    "codes of uint4": (
        forge({"a": quantized(array([2], dtype="uint4"))}, b"a", ONE),
        "'a' has codes of 4 bits in uint8",
    ),
    "codes of codes": (forge({"a": quantized(quantized(array([1])))}, b"a", ONE, ONE), "'a' is nothing"),
    "scale of codes": (
        forge({"a": quantized(array([1], dtype="int8"), ("int3", [], "dense", "raw"))}, b"a", b"b"),
        "int3",
    ),
    "integer scale": (
        forge({"a": quantized(array([1], dtype="int8"), ("int32", [], "dense", "raw"))}, b"a", ONE),
        "scale in int32",
    ),
    "scale too long": (
        forge({"a": quantized(array([2], dtype="int8"), ("float32", [3], "dense", "raw"))}, b"ab", 3 * ONE),
        r"scale of shape \(3,\) that does not broadcast",
    ),
    "scale that enlarges": (
        forge({"a": quantized(array([1], dtype="int8"), ("float32", [2**20, 1], "dense", "raw"))}, b"a", ONE),
        "does not broadcast",
    ),
    "decodes to nonsense": (forge({"a": quantized(array([1], dtype="int8"), dtype="x")}, b"a", ONE), "decodes to x"),
    "decodes to integers": (
        forge({"a": quantized(array([1], dtype="int8"), dtype="int8")}, b"a", ONE),
        "decodes to int8",
    ),
    "one code of many": (
        forge(
            {"a": quantized(sparse([72_000_000], 1, "deflate", "raw", dtype="int8"))},
            deflate(b"\1" + bytes(8_999_999)),
            b"\x80",
            ONE,
        ),
        r"'a' has codes outside \[-127, 127\]",
    ),
    # stored forms on grids, of version 2
    "grid of another width": (gridded(["floats", 2, 1, 0], "uint6"), "codes of 6 bits in uint8 for Floats"),
    "grid of text": (gridded("nf4"), "a grid that is nothing this library knows"),
    "grid of numbers": (gridded([4, 1]), "a grid that is nothing this library knows"),
    "grid without an end": (gridded(["levels"]), "`Levels`: 2 to 256 ascending numbers"),
    "grid of NaN": (gridded(["levels", "7ff8000000000000", "3ff0000000000000"]), "`Levels`"),
    "grid that falls": (gridded(["levels", "3ff0000000000000", "0000000000000000"]), "`Levels`"),
    "grid of no digits": (gridded(["levels", "zzzzzzzzzzzzzzzz", "3ff0000000000000"]), "a grid that is nothing"),
    "grid of huge floats": (gridded(["floats", 10**30, 1, 0]), "`Floats`: an exponent"),
    "grid of negative floats": (gridded(["floats", 4, -1, 0]), "`Floats`: an exponent"),
    "grid of true floats": (gridded(["floats", True, 1, 0]), "a grid that is nothing"),
    "grid of unsigned integers": (gridded(["integers", True]), "codes of 4 bits in uint8 for Integers"),
    "code beyond the levels": (
        gridded(["levels", *(struct.pack(">d", x).hex() for x in range(9))], code=b"\x99"),
        r"'a' has codes outside \[0, 8\]",
    ),
    "zero point of floats": (gridded(["integers", False], "int4", zero="float32"), "a zero point in float32"),
    "zero point of another shape": (
        gridded(["integers", False], "int4", zero="int8", zero_shape=[1]),
        "a zero point in",
    ),
    "scale of no run": (gridded(["integers", False], "int4", scale=[0]), r"scale of shape \(0,\)"),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jc"


def refused(path, content: bytes, message: str, **arguments) -> int:
    """Load a file that must be refused; return the most that Python and NumPy allocated meanwhile."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^`load`: '{re.escape(str(path))}': .*(?:{message})"):
            export.load(path, **arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_forger_can_write_sound_files(path):
    """What the tests below refuse, they refuse for the reason that they name."""
    model = {
        "dense": array([2, 2], dtype="int16"),
        "deflated": array([99], "deflate"),
        "codes": quantized(sparse([9], 2, dtype="int4")),
        "rest": ["list", None, True, -1, ["tuple"], ["float", "3ff0000000000000"], ["dict", [3], {}]],
    }
    path.write_bytes(forge(model, b"\1\0\2\0\3\0\4\0", deflate(bytes(range(99))), b"\1\1", b"\x71", ONE))
    back = export.load(path)
    assert back["dense"].tolist() == [[1, 2], [3, 4]] and back["deflated"].tolist() == list(range(99))
    assert back["codes"].codes.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 7] and back["codes"].bits == 4
    assert back["rest"] == [None, True, -1, (), 1.0, {3: {}}]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(path, name):
    content, message = HOSTILE[name]
    assert len(content) < 10_000
    assert refused(path, content, message) < (2**20 if name.startswith("bomb") else MOST)


def test_a_real_header_that_is_too_large(path):
    """20 MiB of JSON are not parsed, although they are all there."""
    assert refused(path, container('{"__metadata__":{"a":"' + "x" * 20 * 2**20 + '"}}'), "exceeds 16,777,216") < 2**20


def test_no_regular_file(tmp_path):
    with pytest.raises(ValueError, match="not a regular file"):
        export.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        export.load(tmp_path / "none.jc")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jc")
    with pytest.raises(ValueError, match="not a regular file"):
        export.load(tmp_path / "pipe.jc")


def test_max_bytes(path):
    """The limit is on the arrays in memory, stored forms as stored; it is checked before they are made."""
    model = {"zeros": jnp.zeros(10**6), "q": Quantized.of(jnp.zeros(100, jnp.int8), jnp.ones(()), Integers(4))}
    export.save(path, model)
    exact = 4 * 10**6 + 100 + 4
    assert export.load(path, max_bytes=exact)["zeros"].shape == (10**6,)
    message = r"arrays take 4,000,104 bytes, over the limit of 4,000,103; `max_bytes` raises it"
    assert refused(path, path.read_bytes(), message, max_bytes=exact - 1) < 2**20
    assert refused(path, forge({"a": array([10**6])}, bytes(10**6)), "`max_bytes`", max_bytes=10**5) < 2**20


def test_many_arrays_within_the_limit_each(path):
    """The sum counts: each array of zeros is 2 GiB."""
    stream = deflate(bytes(9_000_000))
    nodes = {str(i): sparse([72_000_000], 0, "deflate", "raw", dtype="float64") for i in range(8)}
    content = forge(nodes, *[section for _ in nodes for section in (stream, b"")])
    assert refused(path, content, "arrays take 4,608,000,000 bytes, over the limit of 4,294,967,296") < MOST


def small_model():
    codes = np.where(np.arange(600) % 9 == 0, np.arange(600) % 7 - 3, 0).astype(np.int8).reshape(20, 30)
    return {
        "bias": jnp.arange(5.0),
        "kernel": Quantized.of(jnp.asarray(codes), jnp.linspace(0.5, 1.5, 30).reshape(1, 30), Integers(4)),
        "rest": [None, 1, -0.5, (True, jnp.zeros((40, 40), jnp.bfloat16))],
    }


def bits(model) -> list:
    return [jax.tree.structure(model), *[(type(x), np.asarray(x).tobytes()) for x in jax.tree.leaves(model)]]


def refused_or_the_same(path, content: bytes, model) -> bool:
    path.write_bytes(content)
    try:
        back = export.load(path)
    except ValueError as error:
        assert str(error).startswith(f"`load`: {str(path)!r}: ")
        return True
    assert bits(back) == bits(model)
    return False


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_every_byte_flipped(path, flip):
    model = small_model()
    export.save(path, model)
    sound = path.read_bytes()
    assert len(sound) < 2000
    taken = [i for i in range(len(sound)) if not refused_or_the_same(path, flipped(sound, i, flip), model)]
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    assert all(sound[i : i + 1] == b" " and i < header for i in taken)  # blanks that pad the header


def flipped(content: bytes, position: int, flip: int) -> bytes:
    return content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]


def test_every_length_cut_off(path):
    model = small_model()
    export.save(path, model)
    sound = path.read_bytes()
    assert all(refused_or_the_same(path, sound[:length], model) for length in range(len(sound)))
    assert refused_or_the_same(path, sound + b"\0", model)
    assert refused_or_the_same(path, sound * 2, model)


PIECES = [
    "1",
    "-1",
    "0",
    "[]",
    "{}",
    "null",
    "true",
    '"raw"',
    '"deflate"',
    '"int8"',
    '"bool"',
    "9" * 20,
    "[1]",
    ",",
    '"',
]


@given(data=st.data())
@settings(max_examples=300)
def test_forged_manifests_raise_nothing_but_a_value_error(tmp_path_factory, data):
    """Pieces of a sound manifest are replaced, and the checksum is made right again."""
    path = tmp_path_factory.mktemp("forged") / "model.jc"
    node = {
        "a": array([2, 3], "deflate", dtype="int16"),
        "b": ["list", quantized(sparse([9], 2, dtype="int4")), ["float", "3ff0000000000000"], ["dict", [3], None]],
    }
    tokens = re.findall(r'"[^"]*"|-?\d+|[^"\d]', json.dumps({"version": 1, "model": node}, separators=(",", ":")))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(tokens) - 1))
        tokens[position] = data.draw(st.sampled_from(PIECES + tokens))
    sections = [deflate(bytes(12)), b"\1\1", b"\x71", ONE]
    path.write_bytes(forge(None, *sections, text="".join(tokens)))
    try:
        export.load(path, max_bytes=10**6)
    except ValueError as error:
        assert str(error).startswith("`load`: ")


@given(st.lists(st.binary(max_size=12), min_size=4, max_size=4))
@example([deflate(bytes(12)), b"\1\1", b"\x71", ONE])
@settings(max_examples=200)
def test_forged_sections_raise_nothing_but_a_value_error(tmp_path_factory, sections):
    path = tmp_path_factory.mktemp("forged") / "model.jc"
    node = [array([2, 3], "deflate", dtype="int16"), quantized(sparse([9], 2, dtype="int4"))]
    path.write_bytes(forge(["list", *node], *sections))
    try:
        back = export.load(path)
    except ValueError as error:
        assert str(error).startswith("`load`: ")
    else:
        assert np.abs(back[1].codes).max() <= 7


MEASURE = """
import pathlib, resource, sys
from jaxopt_compress import export
export.save(sys.argv[1] + "/sound.jc", 1)
export.load(sys.argv[1] + "/sound.jc")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).glob("hostile*")):
    try:
        export.load(path)
    except ValueError:
        continue
    raise SystemExit(f"{path} was read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_the_memory_of_a_process_that_refuses_them_all(tmp_path):
    """Also what safetensors, zlib and the JSON parser allocate."""
    for number, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"hostile_{number}.jc").write_bytes(content)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(result.stdout) * 1024 < MOST
