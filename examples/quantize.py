"""Train with 2-bit weights, against rounding after training: `python -m examples.quantize`."""

import jax

import jaxopt_compress as jc
from examples import data
from examples.prune import accuracy, train


def main(bits: int = 2) -> dict[str, float]:
    digits = data.load("digits")
    quantize = jc.select("**/kernel", jc.quantization.fake_quantize(bits=bits))
    dense = train(jc.chain(), digits)
    aware = train(quantize, digits)
    rounded = jax.jit(quantize.apply)(dense, quantize.init(dense))
    found = {
        "float": accuracy(dense, digits.validation),
        f"{bits}-bit weights, rounded after training": accuracy(rounded, digits.validation),
        f"{bits}-bit weights, trained with them": accuracy(aware, digits.validation),
    }
    for name, value in found.items():
        print(f"{name:>40}: validation accuracy {value:.1%}")
    return found


if __name__ == "__main__":
    main()
