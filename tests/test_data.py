"""The examples' data sets: read from where they may lie, and a message that helps where they are missing."""

import gzip
import struct

import numpy as np
import pytest

from examples import data

RNG = np.random.default_rng(0)
X_TRAIN = RNG.integers(0, 256, (24, 5, 4), np.uint8)
Y_TRAIN = RNG.integers(0, 10, 24).astype(np.uint8)
X_TEST = RNG.integers(0, 256, (7, 5, 4), np.uint8)
Y_TEST = RNG.integers(0, 10, 7).astype(np.uint8)
ARRAYS = {"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_test": X_TEST, "y_test": Y_TEST}


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """Take away every place that a data set may be found in: only what a test makes is there."""
    for variable in (data.VARIABLE, "KERAS_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data.Path, "home", lambda: tmp_path / "home")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    seen = data.places
    monkeypatch.setattr(data, "places", lambda name: [p for p in seen(name) if not str(p).startswith("/usr")])


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, zipped: bool):
    folder.mkdir(parents=True)
    for stem, array in zip(data.IDX, ARRAYS.values(), strict=True):
        name = f"{stem}.gz" if zipped else stem
        (folder / name).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def check(found, source):
    assert found.source == str(source)
    assert [split.image.dtype for split in found[:3]] == [np.float32] * 3
    assert [split.label.dtype for split in found[:3]] == [np.int32] * 3
    image, label = (np.concatenate([getattr(part, name) for part in found[:2]]) for name in ("image", "label"))
    np.testing.assert_array_equal(image, X_TRAIN.reshape(24, 20).astype(np.float32) / 255)
    np.testing.assert_array_equal(label, Y_TRAIN)
    np.testing.assert_array_equal(found.test.image, X_TEST.reshape(7, 20).astype(np.float32) / 255)
    np.testing.assert_array_equal(found.test.label, Y_TEST)
    assert len(found.validation.label) == 4  # the last sixth


@pytest.mark.slow
def test_digits():
    digits = data.load("digits")
    assert [split.image.shape for split in digits[:3]] == [(1197, 64), (240, 64), (360, 64)]
    assert digits.source == "scikit-learn"
    everything = np.concatenate([split.image for split in digits[:3]])
    assert (everything.min(), everything.max()) == (0, 1)
    assert [np.unique(split.label).size for split in digits[:3]] == [10] * 3
    np.testing.assert_array_equal(data.load("digits").train.image, digits.train.image)  # the same split every time


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("inside", [".", "{name}", "{package}"])
def test_npz_in_the_named_folder(name, inside, tmp_path, monkeypatch):
    package = name.replace("-", "_")
    folder = tmp_path / "own" / inside.format(name=name, package=package)
    folder.mkdir(parents=True)
    np.savez(folder / f"{package}.npz", **ARRAYS)
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "own"))
    check(data.load(name), folder)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_idx_in_the_named_folder(name, zipped, tmp_path, monkeypatch):
    write_idx(tmp_path / "own" / name, zipped)
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "own"))
    check(data.load(name), tmp_path / "own" / name)


def test_where_keras_and_torchvision_put_it(tmp_path, monkeypatch):
    write_idx(tmp_path / "home/data/FashionMNIST/raw", zipped=True)
    check(data.load("fashion-mnist"), tmp_path / "home/data/FashionMNIST/raw")
    (tmp_path / "home/.keras/datasets").mkdir(parents=True)
    np.savez(tmp_path / "home/.keras/datasets/mnist.npz", **ARRAYS)
    check(data.load("mnist"), tmp_path / "home/.keras/datasets")
    (tmp_path / "keras/datasets").mkdir(parents=True)
    np.savez(tmp_path / "keras/datasets/mnist.npz", **ARRAYS)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    check(data.load("mnist"), tmp_path / "keras/datasets")


def test_the_two_sets_are_not_mistaken_for_each_other(tmp_path, monkeypatch):
    write_idx(tmp_path / "own/fashion-mnist", zipped=True)
    write_idx(tmp_path / "loose", zipped=True)
    for folder in ("own", "loose"):  # idx files have the same names in both
        monkeypatch.setenv(data.VARIABLE, str(tmp_path / folder))
        with pytest.raises(FileNotFoundError):
            data.load("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_message_lists_the_places_and_the_ways(name, tmp_path, monkeypatch):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "own"))
    with pytest.raises(FileNotFoundError, match=f"no {name} data set found") as error:
        data.load(name)
    message = str(error.value)
    for place in data.places(name):
        assert f"\n  {place}" in message
    for word in (str(tmp_path / "own"), data.VARIABLE, data.HOW[name], f"{name.replace('-', '_')}.npz", "x_train"):
        assert word in message


def test_half_a_data_set_is_none(tmp_path, monkeypatch):
    write_idx(tmp_path / "own/mnist", zipped=True)
    (tmp_path / "own/mnist" / f"{data.IDX[3]}.gz").unlink()
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "own"))
    with pytest.raises(FileNotFoundError):
        data.load("mnist")
