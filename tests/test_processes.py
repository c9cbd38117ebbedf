"""Two real processes: the same masks and weights as one device, and no parameter gathered."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import worker

ROOT = Path(__file__).parent.parent


@pytest.mark.exhaustive
def test_two_processes_agree_with_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "masks.npz"
    flags = f"--xla_force_host_platform_device_count={worker.DEVICES}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.worker", str(port), str(number), str(out)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    with np.load(out) as together:
        for method in worker.METHODS:
            params, removed, _ = worker.train(method)
            assert any(np.asarray(mask).any() for mask in removed.values())
            for name, alone in worker.flat(params, removed).items():
                np.testing.assert_array_equal(together[f"{method}/{name}"], alone, err_msg=f"{method}/{name}")
            assert together[f"{method}/gathered"] <= 64, method  # the mask of the channels, and nothing larger
        for name, alone in worker.shrink().items():
            assert together[f"shrink/{name}"].shape == alone.shape
            np.testing.assert_allclose(together[f"shrink/{name}"], alone, rtol=1e-5, atol=1e-5)
