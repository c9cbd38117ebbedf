"""What does a teacher cost in a training step? `python -m benchmarks.distill_step [--quick] [--out FILE]`.

A vision transformer with 5M parameters teaches one with a quarter of them; the student's step is Adam's, with donated
state. The distilled step, one compiled program with the teacher inside, is held against the student's step and the
teacher's forward pass added up, run by run; the one with stored logits against the student's step alone. The int8
teacher multiplies integers with static ranges. Temporaries of a loss over a large vocabulary, 2,048 tokens of 32,768
classes, are what the compiler says; nothing of that runs.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _linen, harness
from jaxopt_compress import distillation
from jaxopt_compress.quantization import convert, observers, quantize, schemes

ADAM = optax.adam(1e-4)
TOKENS, CLASSES, CHUNK = 2048, 32768, 256


def step_of(loss: Callable) -> Callable:
    """Return a training step for `loss(params, *batch)`."""

    def step(state, *batch):
        params, opt_state = state
        value, slopes = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = ADAM.update(slopes, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


def runs(quick: bool) -> dict[str, Callable[[], Any]]:
    """Return the variants to time, by name."""
    teacher, x = _linen.vit(quick)
    student = _linen.Vit(32, 1, 2) if quick else _linen.Vit(192, 3, 3)
    held, start = teacher.init(jax.random.key(0), x), student.init(jax.random.key(1), x)
    label = jnp.zeros(len(x), jnp.int32)
    q = quantize(teacher.apply, held, x, rules={"**": schemes.static(observers.minmax())})
    int_fn, int_params = convert(q, held, q.observe(held, q.init(), x))
    logits = teacher.apply(held, x)

    def plain(params, x, label):
        return distillation.cross_entropy(student.apply(params, x), label).mean()

    def taught(by: Callable) -> Callable:
        def loss(params, x, label, known):
            return distillation.kd(student.apply(params, x), by(known, x), label).mean()

        return loss

    losses = {
        "student": (plain, ()),
        "taught": (taught(teacher.apply), (held,)),
        "taught, int8": (taught(int_fn), (int_params,)),
        "taught, stored logits": (taught(lambda known, x: known), (logits,)),
    }
    found: dict[str, Callable[[], Any]] = {}
    for name, (loss, known) in losses.items():
        params = jax.tree.map(jnp.copy, start)
        state = (params, ADAM.init(params))
        compiled = jax.jit(step_of(loss), donate_argnums=0).lower(state, x, label, *known).compile()
        found[name] = harness.stepper(compiled, state, x, label, *known)
    forward = jax.jit(teacher.apply)
    return found | {"teacher": lambda: forward(held, x), "teacher, int8": lambda: int_fn(int_params, x)}


def vocabulary(quick: bool) -> dict[str, float]:
    """Return the temporaries in MiB of the gradient of a loss over logits, whole and in chunks."""
    shape = (64, 512) if quick else (TOKENS, CLASSES)
    logits, labels = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    found = {}
    for name, loss in (("whole", distillation.kd), ("chunks", distillation.in_chunks(distillation.kd, CHUNK))):
        total = lambda s, t, y, loss=loss: loss(s, t, y).mean()  # noqa: E731
        compiled = jax.jit(jax.grad(total)).lower(logits, logits, labels).compile()
        found[name] = harness.temporary_bytes(compiled) / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    times = harness.interleaved(runs(options.quick), 3 if options.quick else options.rounds)
    sums = {
        "taught": [a + b for a, b in zip(times["student"], times["teacher"])],
        "taught, int8": [a + b for a, b in zip(times["student"], times["teacher, int8"])],
        "taught, stored logits": times["student"],
    }
    over = {name: statistics.median(a / b for a, b in zip(times[name], base)) for name, base in sums.items()}
    memory = vocabulary(options.quick)
    cells = [
        (name, 1e3 * float(np.median(each)), harness.ratio(times, name, "student"), over.get(name, ""))
        for name, each in times.items()
    ]
    harness.show("steps", ("", "ms", "of the student's step", "of the sum of its parts"), cells)
    harness.show("temporaries of a large vocabulary", ("", "MiB"), list(memory.items()))
    keys = {
        "distill_step": over["taught"],
        "distill_int8_step": over["taught, int8"],
        "distill_int8_over_student": harness.ratio(times, "taught, int8", "student"),
        "distill_cached_step": over["taught, stored logits"],
        "kd_vocab_mib": memory["chunks"],
        "kd_vocab_whole_mib": memory["whole"],
    }
    harness.finish(keys, options.out, times={k: float(np.median(v)) for k, v in times.items()}, rounds=options.rounds)


if __name__ == "__main__":
    main()
