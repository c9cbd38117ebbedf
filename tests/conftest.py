"""Settings for all tests: eight simulated CPU devices, strict promotion, and Hypothesis without deadlines."""

import os
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices, and each program compiled by one thread: the same programs, and the workers fill the cores already.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("default")


GOLDEN = (5**0.5 - 1) / 2  # steps of which never fall into step with the rows or columns of a table


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Leave to `make exhaustive` all but about one in `n` of the cases of a test that is marked `sampled(n)`."""
    seen = Counter()
    for item in items:
        mark, test = item.get_closest_marker("sampled"), item.nodeid.split("[")[0]
        fast = not (item.get_closest_marker("slow") or item.get_closest_marker("tpu"))
        if mark and not fast and seen[test] * GOLDEN % 1 >= 1 / mark.args[0]:
            item.add_marker(pytest.mark.exhaustive)
        seen[test] += 1


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def bounded_compile_cache():
    """Drop compiled programs when there are many: thousands of them exhaust the memory mappings of a process."""
    yield
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if not limit.exists() or 3 * len(maps.read_bytes().splitlines()) > int(limit.read_text()):
        jax.clear_caches()
