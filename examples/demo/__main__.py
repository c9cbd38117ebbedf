"""Run the main job: `python -m examples.demo [--data digits|mnist|fashion-mnist] [--seeds N] [--out FOLDER]`."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import jaxopt_compress as jc
from examples import data
from examples.demo import measuring, scoring, showing
from examples.demo.training import SETTINGS, Run, Setting, TrainState, accuracy, epoch, runs, train


class Outcome(NamedTuple):
    """What one seed gave: the final states, and validation accuracy and sparsity after every epoch."""

    states: dict[str, TrainState]
    history: dict[str, list[float]]


def seen_by_forward(state: TrainState) -> Any:
    """Return the parameters that the forward pass sees: those that are shipped."""
    return state.tx.apply(state.params, state.opt_state)


def train_all(plan: dict[str, Run], split: data.Data, seed: int, progress: Progress, task: Any) -> Outcome:
    """Train the three models of one seed; only the teacher has a seed of its own."""
    states, history = {}, {name: [] for name in (*plan, "sparsity")}
    for name, run in plan.items():

        def after(number: int, state: TrainState, name: str = name, epochs: int = run.epochs) -> None:
            params = seen_by_forward(state)
            history[name].append(accuracy(state.apply_fn, params, split.validation))
            if name == "compressed student":
                weights = measuring.kernels(params)
                history["sparsity"].append(1 - sum(map(np.count_nonzero, weights)) / sum(w.size for w in weights))
            progress.update(task, advance=1, description=f"seed {seed}: {name}, epoch {number + 1} of {epochs}")

        teacher = states["teacher"].params if "teacher" in states else None
        start = 1_000 + seed if name == "teacher" else seed
        states[name] = train(run, split.train, start, teacher if name == "compressed student" else None, after)
    return Outcome(states, history)


def save_and_score(outcome: Outcome, plan: dict[str, Run], name: str, seed: int, split: data.Data, folder: Path):
    """Save the compressed student, score it here and in a fresh process, and demand the same bits."""
    state = outcome.states["compressed student"]
    path = folder / f"student-{name}-{seed}.jc"
    size = jc.export.save(path, state.tx.encode(state.params, state.opt_state))
    here = scoring.score(plan["compressed student"].model, seen_by_forward(state), split.test)
    there = scoring.score_in_fresh_process(str(path), name)
    if here != there:
        raise RuntimeError(f"the file {path} does not compute what was trained: {here} here, {there} from the file.")
    return size, here


def tabulate(plan, outcomes, sizes, compressed_scores, split: data.Data) -> list[measuring.Measured]:
    """Measure all three models; the test set is touched here, once."""
    rows = []
    for name, run in plan.items():
        params = [seen_by_forward(outcome.states[name]) for outcome in outcomes]
        small = name == "compressed student"
        scores = compressed_scores if small else [scoring.score(run.model, p, split.test) for p in params]
        file_bytes = sizes if small else [measuring.float_bytes(p) for p in params]
        accuracies = [s["accuracy"] for s in scores]
        first = outcomes[0].states[name]
        bits = measuring.bits_of_kernels(first.tx.encode(first.params, first.opt_state))
        rows.append(measuring.measure(name, run.model, params[0], accuracies, file_bytes, bits, split.test.image))
    return rows


def results(rows, name: str, setting: Setting, seeds: int, source: str) -> dict[str, Any]:
    """Collect everything a reader needs to repeat the run."""
    dense, small = rows[1], rows[2]
    return {
        "data": name,
        "source": source,
        "seeds": list(range(seeds)),
        "setting": setting._asdict(),
        "rows": [row._asdict() for row in rows],
        "ratios": {
            "compression": float(np.mean(dense.file_bytes) / np.mean(small.file_bytes)),
            "accuracy_difference_points": 100 * float(np.mean(small.accuracy) - np.mean(dense.accuracy)),
        },
        "fresh_process_bit_identical": True,
        "compilations_of_the_training_epoch": epoch._cache_size(),
        "environment": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__}
        | {"optax": optax.__version__, "jaxopt_compress": jc.__version__}
        | {"device": f"{jax.devices()[0].device_kind}, {platform.machine()}"},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--data", choices=data.NAMES, default="digits")
    parser.add_argument("--seeds", type=int, help="how many; 5 for digits, else 1")
    parser.add_argument("--epochs", type=int, help="of each run, to try things out")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the file, the table and the plot")
    options = parser.parse_args(arguments)
    console = Console(width=max(Console().width, 116))
    try:
        split = data.load(options.data)
    except FileNotFoundError as error:
        sys.exit(str(error))
    seeds = options.seeds or (5 if options.data == "digits" else 1)
    setting = SETTINGS[options.data]
    if options.epochs:
        setting = setting._replace(epochs=options.epochs, teacher_epochs=options.epochs)
    return run_demo(options.data, setting, seeds, split, options.out, console)


def run_demo(name: str, setting: Setting, seeds: int, split: data.Data, folder: Path, console: Console):
    """Train, save, score in fresh processes, and show."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = runs(setting, len(split.train.label))
    total = seeds * (sum(run.epochs for run in plan.values()) + 1)
    columns = (TextColumn("{task.description:<48}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    outcomes, sizes, scores = [], [], []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=total)
        for seed in range(seeds):
            outcomes.append(train_all(plan, split, seed, progress, task))
            progress.update(task, description=f"seed {seed}: scoring the file in a fresh process")
            size, score = save_and_score(outcomes[-1], plan, name, seed, split, folder)
            sizes.append(size)
            scores.append(score)
            progress.update(task, advance=1)
    rows = tabulate(plan, outcomes, sizes, scores, split)
    return show(rows, outcomes[0], results(rows, name, setting, seeds, split.source), folder, console)


def show(rows, first: Outcome, found: dict[str, Any], folder: Path, console: Console) -> dict[str, Any]:
    """Print the table and the facts, save the plot and the results."""
    name, seeds = found["data"], len(found["seeds"])
    ratios = found["ratios"]
    title = f"{name}, {seeds} seed{'s' * (seeds > 1)}, test set touched once"
    showing.print_table(rows, title, console)
    console.print(
        f"The file of the compressed student is {ratios['compression']:.1f}x smaller than the float32 parameters of "
        f"the dense one, {ratios['accuracy_difference_points']:+.2f} points of accuracy. Loaded from its file in a "
        f"fresh process, it gave bit-identical logits for every seed.\nThe latency is that of the decoded "
        f"float model: zeros and codes make the file small, not the float forward fast."
    )
    state = first.states["compressed student"]
    kernel = measuring.kernels(seen_by_forward(state))[1]
    png = folder / f"demo-{name}.png"
    headline = f"{name}: pruned to 90 %, int8, distilled in one jitted step"
    showing.plot(rows, first.history, kernel, png, headline)
    (folder / f"demo-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print(str(jc.report.table(state.params, state.tx.encode(state.params, state.opt_state))), highlight=False)
    console.print(f"plot: {png}\nresults: {folder / f'demo-{name}.json'}")
    return found


if __name__ == "__main__":
    main()
