"""Make `alternate_keras.npz`: what Keras does where `examples/alternate_sgd_adam.py` alternates optimizers.

The file in the repository was made with Keras 3.15.1 on jax 0.10.2, Python 3.11, numpy 2.4.6. The tests read it and do
not need Keras. To make it again:

    pip install keras==3.15.1 jax==0.10.2 numpy
    KERAS_BACKEND=jax python make_alternate_keras.py [SEED [FILE]]

The program is the one that Keras users write: one model, compiled anew with SGD before every even epoch and with Adam
before every odd one; the two optimizer objects live on, so each keeps its own state. The file holds the initial
weights, `init0..init3`, and `loss`: before each epoch and after the last.
"""

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("alternate_keras.npz")
EPOCHS = 100


def main(seed: str = "0", file: str | Path = FILE):
    """Train in full batches and store the initial weights and the losses."""
    import keras  # pyright: ignore[reportMissingImports]

    keras.utils.set_random_seed(int(seed))
    hidden, output = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1, activation="sigmoid")
    model = keras.Sequential([keras.Input((10,)), hidden, output])
    saved = {f"init{i}": np.array(w) for i, w in enumerate(model.get_weights())}
    np.random.seed(0)
    x = np.random.randn(1000, 10).astype("float32")
    y = np.random.randint(0, 2, 1000).astype("float32")
    turns, losses = [keras.optimizers.SGD(0.01), keras.optimizers.Adam(0.01)], []
    for epoch in range(EPOCHS):
        model.compile(optimizer=turns[epoch % 2], loss="binary_crossentropy")
        losses.append(model.evaluate(x, y, batch_size=len(x), verbose=0))
        model.fit(x, y, batch_size=len(x), epochs=1, shuffle=False, verbose=0)
    losses.append(model.evaluate(x, y, batch_size=len(x), verbose=0))
    saved["loss"] = np.array(losses)
    np.savez(file, **saved)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(*sys.argv[1:])
