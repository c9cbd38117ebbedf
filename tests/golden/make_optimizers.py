"""Make `optimizers.json`: where PyTorch's and Keras's own optimizers go on fixed gradients, in float64.

The file in the repository was made with torch 2.13.0 (CPU) and with Keras 3.15.1 on jax 0.10.2, Python 3.11, numpy
2.4.6. The tests read it and need neither framework. To make it again, run once in an environment of each framework,
in this folder; a run replaces its own half of the file:

    pip install torch==2.13.0 numpy
    python make_optimizers.py torch

    pip install keras==3.15.1 jax==0.10.2 numpy
    KERAS_BACKEND=jax JAX_ENABLE_X64=1 python make_optimizers.py keras

The gradients do not depend on the parameters. Some are so small that epsilon decides the step, some are zero, and the
learning rate falls twice, so that every convention in which the frameworks differ shows.
"""

import json
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("optimizers.json")
SHAPES = {"scalar": (), "vector": (5,), "matrix": (2, 3)}
SCALES = np.array([1.0, 1e-2, 1e-5, 1e-8, 0.0])
LEARNING_RATES = [0.1] * 4 + [0.05] * 4 + [0.01] * 4
KEPT_STEPS = [1, 2, 6, 12]


def problem():
    """Draw the start of the parameters and the gradient of every step."""
    random = np.random.RandomState(0)
    start = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    scale = {name: np.resize(SCALES, shape) if shape else 1e-7 for name, shape in SHAPES.items()}
    grads = [{n: random.standard_normal(s) * scale[n] for n, s in SHAPES.items()} for _ in LEARNING_RATES]
    return start, grads


def torch_optimizers():
    """List PyTorch's optimizers by the name of the case."""
    from torch import optim  # pyright: ignore[reportMissingImports]

    return {
        "sgd": lambda p: optim.SGD(p, 0.1),
        "sgd_weight_decay": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
        "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
        "nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        "adam": lambda p: optim.Adam(p, 0.1),
        "adam_weight_decay": lambda p: optim.Adam(p, 0.1, weight_decay=0.05),
        "adamw": lambda p: optim.AdamW(p, 0.1),
        "rmsprop": lambda p: optim.RMSprop(p, 0.1),
        "rmsprop_momentum": lambda p: optim.RMSprop(p, 0.1, momentum=0.9),
        "rmsprop_centered": lambda p: optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
        "adagrad": lambda p: optim.Adagrad(p, 0.1),
        "adagrad_lr_decay": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.3),
    }


def keras_optimizers():
    """List Keras's optimizers by the name of the case."""
    from keras import optimizers  # pyright: ignore[reportMissingImports]

    return {
        "sgd": lambda: optimizers.SGD(0.1),
        "sgd_weight_decay": lambda: optimizers.SGD(0.1, momentum=0.9, weight_decay=0.05),
        "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
        "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        "adam": lambda: optimizers.Adam(0.1),
        "adam_weight_decay": lambda: optimizers.Adam(0.1, weight_decay=0.05),
        "adamw": lambda: optimizers.AdamW(0.1),
        "rmsprop": lambda: optimizers.RMSprop(0.1),
        "rmsprop_momentum": lambda: optimizers.RMSprop(0.1, momentum=0.9),
        "rmsprop_centered": lambda: optimizers.RMSprop(0.1, momentum=0.9, centered=True),
        "adagrad": lambda: optimizers.Adagrad(0.1),
    }


def run_torch(start, grads):
    """Run every case with PyTorch; return `{case: [{leaf: values} for each kept step]}`."""
    import torch  # pyright: ignore[reportMissingImports]

    paths = {}
    for case, build in torch_optimizers().items():
        params = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in start.items()}
        tx, path = build(list(params.values())), []
        for grad, rate in zip(grads, LEARNING_RATES):
            tx.param_groups[0]["lr"] = rate
            for name, p in params.items():
                p.grad = torch.tensor(grad[name], dtype=torch.float64)
            tx.step()
            path.append({name: p.detach().numpy().tolist() for name, p in params.items()})
        paths[case] = [path[step - 1] for step in KEPT_STEPS]
    return paths


def run_keras(start, grads):
    """Run every case with Keras; return `{case: [{leaf: values} for each kept step]}`."""
    import keras  # pyright: ignore[reportMissingImports]

    keras.config.set_floatx("float64")
    paths = {}
    for case, build in keras_optimizers().items():
        params = {name: keras.Variable(value, dtype="float64", name=name) for name, value in start.items()}
        tx, path = build(), []
        tx.build(list(params.values()))
        for grad, rate in zip(grads, LEARNING_RATES):
            tx.learning_rate = rate
            tx.apply([keras.ops.convert_to_tensor(grad[name], "float64") for name in params])
            path.append({name: np.asarray(p.value).tolist() for name, p in params.items()})
        paths[case] = [path[step - 1] for step in KEPT_STEPS]
    return paths


def main(framework: str):
    """Run one framework and replace its half of the file."""
    start, grads = problem()
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    as_lists = lambda leaves: {name: np.asarray(value).tolist() for name, value in leaves.items()}  # noqa: E731
    golden |= {
        "learning_rates": LEARNING_RATES,
        "kept_steps": KEPT_STEPS,
        "start": as_lists(start),
        "grads": [as_lists(grad) for grad in grads],
        framework: {"torch": run_torch, "keras": run_keras}[framework](start, grads),
    }
    FILE.write_text(json.dumps(golden, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
