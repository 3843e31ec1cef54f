"""What models on a GPU do: the same as on the CPU, how fast, in how much memory, and what is learned by when.

python benchmarks/gpu.py PART [GPU...]     # PART: exact, speed, pong, breakout or a3g; under 10 minutes each
python benchmarks/gpu.py speed cpu         # the same without a GPU, to compare
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from arcadia.config import TrainConfig
from arcadia.devices import CPU, choose_device, find_gpus
from arcadia.envs import make_vector_env, spec_of
from arcadia.gradients import Learner
from arcadia.loss import compute_targets
from arcadia.metrics import read_metrics
from arcadia.models import FlatParameters, build_model
from arcadia.optimizers import apply_gradient, init_optimizer_state
from arcadia.recipes import RECIPES
from arcadia.rollout import RolloutCollector
from arcadia.stopwatch import Stopwatch
from arcadia.types import Rollout

ROLLOUTS = 20
NUM_ENVS = 4
EXACT = ("a3c-ff", "a3c-lstm", "a3g-lstm", "wrappers-12-stack4-bn", "gru-160", "atari", "control")
BFLOAT16 = "a3c-ff"  # compared with its torso in bfloat16 too
ROUND_TRIPS = 1000
CURVE_MINUTES = 9.0  # with start-up and end less than 10
CURVE_SECONDS = 30  # between what is printed of a curve
PONG = "pong --num-envs 8 --num-minibatches 2 --num-epochs 3 --beta1 0 --total-steps 1200000 --stop-score 18"
BREAKOUT = "breakout --total-steps 10000000 --stop-score 400"


def record(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> list[Rollout]:
    """Play rollouts with a model as it begins, on `device`; return them on the CPU."""
    env = make_vector_env(config.env, num_envs=config.envs_per_worker, seed=1)
    model = build_model(config.model, env.spec, seed=1, dtype=dtype).to(device)
    collector = RolloutCollector(
        env,
        model,
        num_steps=config.runtime.num_steps[0],
        config=config.env,
        gamma=config.loss.gamma,
        generator=torch.Generator().manual_seed(1),
        stopwatch=Stopwatch(),
    )
    rollouts, statistics = [], torch.zeros(model.statistics_size, dtype=torch.float64)
    for _ in range(ROLLOUTS):
        model.load_statistics(statistics)
        # The collector uses a rollout's tensors again.
        rollouts.append(Rollout.of([tensor.cpu().clone() for tensor in collector.collect().tensors()]))
        if (update := collector.statistics()) is not None:
            statistics = statistics * update.keep + update.add
    return rollouts


def learn(
    config: TrainConfig, rollouts: list[Rollout], device: torch.device, dtype: torch.dtype, size: int
) -> torch.Tensor:
    """Return the parameters [P] after updates from each rollout, by a model on `device`.

    Args:
        size: environments of an update; the last of a rollout may have fewer.
    """
    model = build_model(config.model, spec_of(config.env), seed=1, dtype=dtype).to(device)
    parameters = FlatParameters(model)
    learner = Learner(model, parameters, config.loss)
    shared = parameters.read()
    state = {name: tensor[0] for name, tensor in init_optimizer_state(config.optimizer, len(shared), 1).items()}
    for number, rollout in enumerate(rollouts):
        targets = compute_targets(rollout, config.loss).to(device)
        rollout = rollout.to(device)
        for index in torch.arange(NUM_ENVS, device=device).split(size):
            parameters.load(shared)
            part = rollout.environments(index), targets.environments(index)
            gradient, *_ = learner.compute_gradient(*part, entropy_coefficient=0.02 / (1 + number))
            apply_gradient(shared, gradient, state, config.optimizer, config.optimizer.lr)
    return shared


def exact(gpus: list[int]) -> None:
    """Print how far playing and learning on a GPU stray from the CPU's, and count torn or stale copies."""
    device = choose_device(gpus, 0)
    for name in EXACT:
        config = RECIPES[name].config
        game = "Pendulum-v1" if name == "control" else "pong"
        config = replace(config, env=replace(config.env, env=game, num_envs=NUM_ENVS))
        if name == "control":
            config = replace(config, model=replace(config.model, policy="squashed"))
        compare(name, config, device, torch.float32)
        if name == BFLOAT16:
            compare(name, config, device, torch.bfloat16)
    config = RECIPES["a3g-lstm"].config  # its copies take long enough to be torn
    config = replace(config, env=replace(config.env, env="pong"))
    for dtype in (torch.float32, torch.bfloat16):
        wrong = count_wrong_copies(config, device, dtype)
        print(f"{ROUND_TRIPS} round trips of {dtype} parameters: {wrong} torn or stale (none)")


def compare(name: str, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Print how far playing and learning with torsos of a dtype stray from the CPU's."""
    rollouts, played = record(config, CPU, dtype), record(config, device, dtype)
    pairs = list(zip(rollouts, played, strict=True))
    # Later on continuous actions, which differ by rounding, have led to other observations.
    number = 1 if rollouts[0].action.is_floating_point() else ROLLOUTS
    strays = [
        max(float((getattr(ours, field) - getattr(theirs, field)).abs().max()) for ours, theirs in pairs[:number])
        for field in ("action", "value")
    ]
    print(f"{name}, {dtype}: {number} rollouts with actions within {strays[0]:.1e}, values within {strays[1]:.1e}")
    for size in (NUM_ENVS, NUM_ENVS - 1):
        on_cpu, on_gpu = (learn(config, rollouts, where, dtype, size) for where in (CPU, device))
        share = float((on_cpu - on_gpu).norm() / on_cpu.norm())
        print(f"{name}, {dtype}: learned from {size} environments at a time, |cpu - gpu| / |cpu| {share:.1e}")


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
            parameter.grad = parameter.detach()
        parameters.write_gradient()
        wrong += not bool((parameters.gradient() == expected).all())
    return wrong


class Trained(NamedTuple):
    """What was seen of one `arcadia train`."""

    seconds: float | None  # from the start of the command until the score was reached, if it was
    env_steps: int  # 0 where the command failed


def train(arguments: str, gpus: list[int], minutes: float) -> Trained:
    """Run `arcadia train` with 16 workers until it ends by itself; print a line of it now and then."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "arcadia", "train", *arguments.split(), "--num-workers", "16"]
        command += ["--run-dir", str(run), "--total-minutes", str(minutes), "--gpu-ids", *map(str, gpus)]
        started, reached, due = time.perf_counter(), None, 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                seconds = time.perf_counter() - started
                if "stop_score reached" in line:
                    reached = reached or seconds
                if seconds >= due or "env_steps" not in line:
                    memory = memory_of_processes() if gpus else []
                    print(line.rstrip())
                    if memory:
                        print(f"{len(memory)} processes hold {min(memory):,.0f} to {max(memory):,.0f} MiB of GPUs each")
                    due = seconds + CURVE_SECONDS
        if process.returncode:
            print(f"exit code {process.returncode}")
            return Trained(None, 0)
        rows = [row for row in read_metrics(run) if row["kind"] == "train"]
        return Trained(reached, int(rows[-1]["env_steps"]) if rows else 0)


def memory_of_processes() -> list[float]:
    """Return the MiB that each process holds of the GPUs; nothing where the driver does not say."""
    query = ["nvidia-smi", "--query-compute-apps=used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return []
    return [float(line) for line in lines if line.strip().isdecimal()]


def speed(gpus: list[int]) -> None:
    """Print training's env_steps per second beside the environments' own, the time of a GPU and copies per second."""
    for options in (["--recipe", "a3c-ff", "--torso", "nature"], ["--recipe", "a3g-lstm"]):
        command = [sys.executable, "-m", "arcadia", "bench", "pong", *options, "--num-envs", "64", "--seconds", "5"]
        code = subprocess.run([*command, *(["--gpu-ids", *map(str, gpus)] if gpus else [])]).returncode
        if code:
            print(f"exit code {code}")


def pong(gpus: list[int]) -> None:
    """Print the seconds that Pong takes to a mean score of 18, from the start of the command."""
    for seed in (1, 2, 3):
        trained = train(f"{PONG} --seed {seed}", gpus, minutes=2)
        took = "not reached" if trained.seconds is None else f"{trained.seconds:.1f} s (at most 60)"
        print(f"seed {seed}: {took}, {trained.env_steps:,} env_steps")


def curve(arguments: str, gpus: list[int]) -> None:
    """Print the mean score each half minute, and the memory that processes hold of the GPUs."""
    trained = train(f"{arguments} --eval-episodes 0", gpus, CURVE_MINUTES)
    if trained.seconds is not None:
        print(f"reached after {trained.seconds / 60:.1f} minutes, start-up included")


def main(part: str, gpus: list[int]) -> None:
    """Run one part."""
    find_gpus(gpus, "cpu")
    parts = {
        "exact": exact,
        "speed": speed,
        "pong": pong,
        "breakout": lambda ids: curve(BREAKOUT, ids),
        "a3g": lambda ids: curve("pong --recipe a3g-lstm", ids),
    }
    parts[part](gpus)


if __name__ == "__main__":
    main(sys.argv[1], [] if sys.argv[2:] == ["cpu"] else [int(argument) for argument in sys.argv[2:]] or [0])
