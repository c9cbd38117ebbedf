"""What does a quantized training step cost? `python -m benchmarks.quantized_step [--quick] [--out FILE]`.

Weights and activations of all dense layers in 8 bits, ranges found as they come (w8a8, dynamic); the optimizer is Adam
on float32 weights; donated state, interleaved runs, medians of ratios to the dense step. `int8 inside` multiplies
integers forward and bfloat16 backward; `as floats` is the usual graph of rounded floats. qwix and AQT run beside them
if they are installed.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _linen, harness
from jaxopt_compress.quantization import Scheme, quantize

MODELS = {"mlp": _linen.mlp, "vit": _linen.vit}
ADAM = optax.adam(1e-4)
RULES = {"**/kernel": Scheme()}


def forwards(model: Any, variables: Any, x: jax.Array) -> dict[str, Callable]:
    """Return the functions to train, each of parameters and a batch."""
    found = {"dense": lambda params, x: model.apply(params, x)}
    for name, integers in (("int8 inside", True), ("as floats", False)):
        q = quantize(model.apply, variables, x, rules=RULES, integers=integers)
        ranges = q.init()
        found[name] = lambda params, x, q=q, ranges=ranges: q(params, ranges, x)
    if importlib.util.find_spec("qwix"):
        found["qwix"] = _qwix(model)
    if importlib.util.find_spec("aqt"):
        found["AQT"] = _aqt(model)
    return found


def _qwix(model: Any) -> Callable:
    import qwix  # pyright: ignore[reportMissingImports]

    rule = qwix.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8", op_names=("dot_general",))
    quantized = qwix.quantize_model(model, qwix.QtProvider([rule]))
    return lambda params, x: quantized.apply(params, x)


def _aqt(model: Any) -> Callable:
    from aqt.jax.v2 import config  # pyright: ignore[reportMissingImports]
    from aqt.jax.v2.flax import aqt_flax  # pyright: ignore[reportMissingImports]

    product = partial(aqt_flax.AqtDotGeneral, config.dot_general_make(8, 8))
    quantized = model.clone(dense=partial(nn.Dense, dot_general_cls=product))
    return lambda params, x: quantized.apply(params, x, rngs={"params": jax.random.key(0)})


def step_of(forward: Callable) -> Callable:
    """Return a training step for a function of parameters and a batch."""

    def step(state, x, label):
        params, opt_state = state

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), label).mean()

        value, slopes = jax.value_and_grad(loss)(params)
        updates, opt_state = ADAM.update(slopes, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


def measure(name: str, quick: bool, rounds: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Return a row for each variant, and the keys of a model."""
    model, x = MODELS[name](quick)
    variables = model.init(jax.random.key(0), x)
    label = jnp.zeros(len(x), jnp.int32)
    steps, rows = {}, {}
    for variant, forward in forwards(model, variables, x).items():
        params = jax.tree.map(jnp.copy, variables)
        state = (params, ADAM.init(params))
        lowered = jax.jit(step_of(forward), donate_argnums=0).lower(state, x, label)
        start = time.perf_counter()
        compiled = lowered.compile()
        rows[variant] = {"compile_s": time.perf_counter() - start, "temporaries": harness.temporary_bytes(compiled)}
        steps[variant] = harness.stepper(compiled, state, x, label)
    times = harness.interleaved(steps, rounds)
    for variant, row in rows.items():
        row["ms"] = 1e3 * float(np.median(times[variant]))
        row["time"] = harness.ratio(times, variant, "dense")
        row["memory"] = row["temporaries"] / rows["dense"]["temporaries"]
    ours = rows["int8 inside"]
    keys = {f"qat_{name}_step": ours["time"], f"qat_{name}_memory": ours["memory"]}
    keys[f"qat_{name}_compile"] = ours["compile_s"] / rows["dense"]["compile_s"]
    return rows, keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    rounds, keys, found = 3 if options.quick else options.rounds, {}, {}
    for name in MODELS:
        found[name], more = measure(name, options.quick, rounds)
        keys |= more
        harness.show(
            f"training step of the {name}, w8a8, against the dense step",
            ("step", "ms", "time, ratio", "temporaries, ratio", "compilation, s"),
            [(v, row["ms"], row["time"], row["memory"], row["compile_s"]) for v, row in found[name].items()],
        )
    keys["qat_compile"] = max(keys.pop(f"qat_{name}_compile") for name in MODELS)
    harness.finish(keys, options.out, rows=found, rounds=rounds)


if __name__ == "__main__":
    main()
