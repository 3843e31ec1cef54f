"""What models on a GPU do: the same as on the CPU, how fast, in how much memory, and what is learned by when.

python benchmarks/gpu.py PART [GPU...]     # PART: exact, speed, pong, breakout, a3g or memory; under 10 minutes each
python benchmarks/gpu.py speed cpu         # the same without a GPU, to compare
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from arcadia.bench import env_only_steps_per_s
from arcadia.config import TrainConfig
from arcadia.devices import CPU, check_gpus, choose_device
from arcadia.envs import make_vector_env, spec_of
from arcadia.gradients import compute_gradient
from arcadia.loss import compute_targets
from arcadia.models import FlatParameters, build_model
from arcadia.optimizers import apply_gradient, init_optimizer_state
from arcadia.recipes import RECIPES
from arcadia.rollout import RolloutCollector
from arcadia.runtimes.hogwild import num_cores
from arcadia.stopwatch import Stopwatch
from arcadia.types import Rollout

ROLLOUTS = 20
ROUND_TRIPS = 1000
SPEED_SECONDS = 60
WARM_UP_SECONDS = 20


def record(config: TrainConfig) -> list[Rollout]:
    """Play rollouts with a model as it begins, on the CPU."""
    env = make_vector_env(config.env, num_envs=config.envs_per_worker, seed=1)
    collector = RolloutCollector(
        env,
        build_model(config.model, env.spec, seed=1),
        num_steps=config.runtime.num_steps[0],
        config=config.env,
        gamma=config.loss.gamma,
        generator=torch.Generator().manual_seed(1),
        stopwatch=Stopwatch(),
    )
    rollouts = []
    for _ in range(ROLLOUTS):
        rollout = collector.collect()  # in tensors that the next call reuses
        tensors = {name: getattr(rollout, name) for name in rollout.__slots__ if name != "activations"}
        rollouts.append(Rollout(**{name: tensor.clone() for name, tensor in tensors.items()}))
    return rollouts


def learn(config: TrainConfig, rollouts: list[Rollout], device: torch.device) -> torch.Tensor:
    """Return the parameters [P] after an update from each rollout, by a model on `device`."""
    model = build_model(config.model, spec_of(config.env), seed=1).to(device)
    parameters = FlatParameters(model)
    shared = parameters.read()
    state = {name: tensor[0] for name, tensor in init_optimizer_state(config.optimizer, len(shared), 1).items()}
    for rollout in rollouts:
        parameters.load(shared)
        targets = compute_targets(rollout, config.loss)
        gradient, *_ = compute_gradient(model, parameters, rollout.to(device), targets.to(device), config.loss)
        apply_gradient(shared, gradient, state, config.optimizer, config.optimizer.lr)
    return shared


def exact(gpus: list[int]) -> None:
    """Print how far learning on a GPU strays from the CPU's, and count torn or stale copies."""
    device = choose_device(gpus, 0)
    for name in ("a3c-ff", "a3c-lstm", "a3g-lstm"):
        config = RECIPES[name].config
        config = replace(config, env=replace(config.env, env="pong", num_envs=4))
        rollouts = record(config)
        on_cpu, on_gpu = (learn(config, rollouts, where) for where in (CPU, device))
        strays = float((on_cpu - on_gpu).norm() / on_cpu.norm())
        print(f"{name}: {ROLLOUTS} rollouts, |cpu - gpu| / |cpu| {strays:.1e} (at most 1e-3)")
    for dtype in (torch.float32, torch.bfloat16):
        wrong = count_wrong_copies(config, device, dtype)
        print(f"{ROUND_TRIPS} round trips of {dtype} parameters: {wrong} torn or stale (none)")


@torch.no_grad()
def count_wrong_copies(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Send numbers to a model and back as gradients, with a second load at once; count those that come back wrong."""
    model = build_model(config.model, spec_of(config.env), seed=1, dtype=dtype).to(device)
    parameters, wrong = FlatParameters(model), 0
    source = torch.empty(parameters.size)
    for number in range(ROUND_TRIPS):
        expected = float(number % 256)  # exact in bfloat16 too
        parameters.load(source.fill_(expected))
        parameters.load(source.fill_(expected + 1 if expected < 255 else 0.0))
        parameters.load(source.fill_(expected))
        source.fill_(-1)  # another worker writes meanwhile
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(parameter)
        wrong += not bool((parameters.gradient() == expected).all())
    return wrong


def train(arguments: list[str], gpus: list[int], run: Path) -> tuple[float, list[dict[str, float]]]:
    """Run `arcadia train`; return its seconds, start-up included, and its rows of metrics."""
    command = [sys.executable, "-m", "arcadia", "train", *arguments, "--run-dir", str(run), "--quiet", "--gpu-ids"]
    started = time.perf_counter()
    subprocess.run([*command, *map(str, gpus)], check=True)
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return seconds, [row for row in rows if row["kind"] == "train"]


def speed(gpus: list[int]) -> None:
    """Print training's env_steps per second beside the emulator's own, and copies per second."""
    for recipe, more in (("a3c-ff", ["--torso", "nature"]), ("a3g-lstm", [])):
        config = replace(RECIPES[recipe].config.env, env="pong", num_envs=16)
        ceiling = env_only_steps_per_s(config, num_cores(), 16, SPEED_SECONDS / 3)
        with tempfile.TemporaryDirectory() as folder:
            minutes = (WARM_UP_SECONDS + SPEED_SECONDS) / 60
            arguments = ["pong", "--recipe", recipe, *more, "--num-envs", "16", "--total-minutes", str(minutes)]
            _, rows = train(arguments, gpus, Path(folder) / "run")
        warm = [row for row in rows if row["seconds"] >= rows[0]["seconds"] + WARM_UP_SECONDS]
        first, last = warm[0], warm[-2]  # the last is written after the workers have stopped
        seconds = last["seconds"] - first["seconds"]
        steps_per_s = (last["env_steps"] - first["env_steps"]) / seconds
        copies = 2 * (last["updates"] - first["updates"]) / seconds
        print(f"{recipe} {' '.join(more)}: {steps_per_s:,.0f} of {ceiling:,.0f} env_steps/s, ", end="")
        print(f"{steps_per_s / ceiling:.1%}; {copies:,.0f} copies of parameters and gradients per second")


def pong(gpus: list[int]) -> None:
    """Print the seconds that Pong takes to a mean score of 18, whole command."""
    times = []
    for seed in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["pong", "--seed", str(seed), "--stop-score", "18", "--total-minutes", "3"]
            seconds, rows = train(arguments, gpus, Path(folder) / "run")
        times.append(seconds)
        print(f"seed {seed}: {seconds:.0f} s, {rows[-1]['env_steps']:,} env_steps, {rows[-1]['mean_return_100']:.1f}")
    print(f"median {statistics.median(times):.0f} s (at most 60)")


def curve(arguments: list[str], gpus: list[int]) -> None:
    """Print a mean score each half minute."""
    with tempfile.TemporaryDirectory() as folder:
        _, rows = train([*arguments, "--total-minutes", "9"], gpus, Path(folder) / "run")
    due = 0.0
    for row in rows:
        if row["seconds"] >= due or row is rows[-1]:
            score = row.get("mean_return_100")
            print(f"{row['seconds'] / 60:.1f} min, {row['env_steps']:,} env_steps: {score}")
            due = row["seconds"] + 30


def memory(gpus: list[int]) -> None:
    """Print the memory that is taken of the GPU, and how busy it is, each minute as 16 workers train."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "arcadia", "train", "pong", "--num-workers", "16", "--total-minutes", "9"]
        options = ["--run-dir", str(Path(folder) / "run"), "--quiet", "--total-steps", str(10**12), "--gpu-ids"]
        query = ["nvidia-smi", f"--id={gpus[0]}", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader"]
        print(f"idle: {subprocess.check_output(query, text=True).strip()}", flush=True)
        process = subprocess.Popen([*command, *options, *map(str, gpus)])
        while process.poll() is None:
            time.sleep(60)
            print(f"16 workers: {subprocess.check_output(query, text=True).strip()}", flush=True)


def main(part: str, gpus: list[int]) -> None:
    """Run one part."""
    check_gpus(gpus)
    parts = {
        "exact": exact,
        "speed": speed,
        "pong": pong,
        "memory": memory,
        "breakout": lambda ids: curve(["breakout", "--stop-score", "400", "--total-steps", "20000000"], ids),
        "a3g": lambda ids: curve(["pong", "--recipe", "a3g-lstm", "--num-workers", "16"], ids),
    }
    parts[part](gpus)


if __name__ == "__main__":
    main(sys.argv[1], [] if sys.argv[2:] == ["cpu"] else [int(argument) for argument in sys.argv[2:]] or [0])
