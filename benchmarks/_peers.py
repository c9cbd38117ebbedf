"""The same quantized layers in other libraries, for those that are installed: qwix, AQT, PyTorch, onnxruntime.

Each function returns callables by name, on the same weights and the same input; whoever is missing is left out.
"""

import copy
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Calls = dict[str, Callable[[], Any]]
Layers = Sequence[tuple[np.ndarray, np.ndarray]]  # kernels (in, out) and biases, with a ReLU between


def installed(*names: str) -> bool:
    """Tell whether all of some packages are there."""
    return all(importlib.util.find_spec(name) for name in names)


def qwix(model: Any, variables: Any, x: jax.Array, **rule: Any) -> Callable[[], Any] | None:
    """Return the Flax module with its weights quantized by qwix, compiled."""
    if not installed("qwix"):
        return None
    import qwix  # pyright: ignore[reportMissingImports]

    provider = qwix.PtqProvider([qwix.QtRule(module_path=".*", **rule)])
    quantized = qwix.quantize_model(model, provider)
    like = jax.eval_shape(quantized.init, jax.random.key(0), x)
    params = qwix.quantize_params(variables["params"], like["params"])
    run = jax.jit(lambda params, x: quantized.apply({**variables, "params": params}, x))
    return lambda: run(params, x)


def aqt_layers(layers: Layers, x: jax.Array) -> Calls:
    """Return AQT with its int8 weights stored (`QuantMode.SERVE`), activations rounded as they come."""
    if not installed("aqt"):
        return {}
    from aqt.jax.v2 import config, utils  # pyright: ignore[reportMissingImports]
    from aqt.jax.v2.flax import aqt_flax  # pyright: ignore[reportMissingImports]

    def model(mode: Any) -> nn.Module:
        options = {"rhs_quant_mode": mode, "rhs_freeze_mode": aqt_flax.FreezerMode.CALIBRATION_AND_VALUE}
        product = partial(aqt_flax.AqtDotGeneral, config.dot_general_make(8, 8), **options)
        dense = [nn.Dense(kernel.shape[1], dot_general_cls=product) for kernel, _ in layers]
        return nn.Sequential([part for each in dense for part in (each, nn.relu)][:-1])

    params = {f"layers_{2 * i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers)}
    keys = {"params": jax.random.key(0)}
    _, held = model(utils.QuantMode.CONVERT).apply({"params": params}, x, rngs=keys, mutable=True)
    served = model(utils.QuantMode.SERVE)
    run = jax.jit(lambda held, x: served.apply(held, x, rngs=keys))
    return {"AQT w8a8": lambda: run(held, x)}


def torch_layers(layers: Layers, x: jax.Array) -> Calls:
    """Return PyTorch in floats, with `quantize_dynamic`, and with torchao as it is and compiled.

    All round activations to int8 as they come, but for torchao's `w8`, which rounds weights alone.
    """
    if not installed("torch"):
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    parts: list[Any] = []
    for i, (kernel, bias) in enumerate(layers):
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data, linear.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
        parts += [linear] if i == len(layers) - 1 else [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*parts).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    given = torch.tensor(np.asarray(x))

    def call(model: Any) -> Callable[[], Any]:
        def run():
            with torch.inference_mode():
                return model(given).numpy()

        return run

    return {"torch f32": call(model), "torch int8": call(quantized)} | {
        name: call(made) for name, made in _torchao(model).items()
    }


def _torchao(model: Any) -> dict[str, Any]:
    if not installed("torchao"):
        return {}
    import torch  # pyright: ignore[reportMissingImports]
    from torchao import quantization  # pyright: ignore[reportMissingImports]

    found: dict[str, Any] = {}
    configs = {"w8a8": "Int8DynamicActivationInt8WeightConfig", "w8": "Int8WeightOnlyConfig"}
    for name, config in configs.items():
        plain = copy.deepcopy(model)
        quantization.quantize_(plain, getattr(quantization, config)())
        found |= {f"torchao {name}": plain}
        found |= {f"torchao {name}, compiled": torch.compile(plain)} if shutil.which("g++") else {}
    return found


def onnx_layers(layers: Layers, x: jax.Array) -> Calls:
    """Return onnxruntime in floats, with its dynamic and with its static quantizer."""
    if not installed("onnx", "onnxruntime"):
        return {}
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]

    folder = Path(tempfile.mkdtemp())
    plain, dynamic, static = (str(folder / f"{name}.onnx") for name in ("plain", "dynamic", "static"))
    _write_onnx(layers, plain)
    quantization.quantize_dynamic(plain, dynamic, weight_type=quantization.QuantType.QInt8)
    kinds = {"weight_type": quantization.QuantType.QInt8, "activation_type": quantization.QuantType.QUInt8}
    quantization.quantize_static(plain, static, _Reader(np.asarray(x)), per_channel=True, **kinds)
    return {
        "onnxruntime f32": _session(plain, x),
        "onnxruntime dynamic": _session(dynamic, x),
        "onnxruntime static": _session(static, x),
    }


class _Reader:
    """What onnxruntime calibrates on: one batch."""

    def __init__(self, x: np.ndarray):
        self.batches = iter([{"x": x}])

    def get_next(self) -> Any:
        """Return the next batch, or None."""
        return next(self.batches, None)


def _session(path: str, x: jax.Array) -> Callable[[], Any]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()  # its threads must not go on spinning while others are timed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"x": np.asarray(x)}
    return lambda: session.run(None, given)[0]


def _write_onnx(layers: Layers, path: str) -> None:
    import onnx  # pyright: ignore[reportMissingImports]

    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes, weights, name = [], [], "x"
    for i, (kernel, bias) in enumerate(layers):
        weights += [onnx.numpy_helper.from_array(kernel, f"w{i}"), onnx.numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"h{i}"]))
        name = f"h{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
            name = f"r{i}"
    ends = [helper.make_tensor_value_info(n, float32, ["batch", k]) for n, k in (("x", len(layers[0][0])), (name, 0))]
    ends[1] = helper.make_tensor_value_info(name, float32, ["batch", layers[-1][0].shape[1]])
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def mlp_layers(params: Any) -> Layers:
    """Return the layers of the Flax MLP as arrays."""
    return [
        (np.asarray(layer["kernel"]), np.asarray(layer.get("bias", jnp.zeros(layer["kernel"].shape[1]))))
        for layer in (params[name] for name in sorted(params))
    ]
