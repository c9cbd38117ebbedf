"""Score a saved model in a process of its own: `python -m examples.demo.scoring FILE DATA [PART]`.

Nothing of the trainer is at hand here: the file, the architecture and the data are all it takes.
"""

import hashlib
import json
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from examples import data
from examples.demo.training import MLP, SETTINGS, forward


def score(model: MLP, params: Any, part: data.Split) -> dict[str, Any]:
    """Return the accuracy, and the SHA-256 of all logits: equal digests mean bit-identical outputs."""
    logits = np.asarray(forward(model.apply, params, jnp.asarray(part.image)))
    accuracy = float(np.mean(logits.argmax(-1) == part.label))
    return {"accuracy": accuracy, "sha256": hashlib.sha256(logits.tobytes()).hexdigest()}


def score_file(path: str, name: str) -> dict[str, Any]:
    """Load, decode and score a file on the test set."""
    return score(MLP(SETTINGS[name].student), jc.decode(jc.export.load(path)), data.load(name).test)


def score_in_fresh_process(path: str, name: str) -> dict[str, Any]:
    """Run `score_file` in a new Python process."""
    command = [sys.executable, "-m", "examples.demo.scoring", path, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"scoring {path} in a fresh process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(score_file(sys.argv[1], sys.argv[2])))
