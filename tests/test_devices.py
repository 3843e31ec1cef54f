"""Models on GPUs: what can be known of it without one."""

import dataclasses
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arcadia.child import _failure
from arcadia.config import LossConfig, ModelConfig
from arcadia.devices import (
    CPU,
    GpuUse,
    GraphedFunction,
    choose_device,
    find_gpus,
    read_gpu_use,
    translate_gpu_memory_errors,
)
from arcadia.envs import EnvSpec
from arcadia.errors import GpuMemoryError, UserError
from arcadia.loss import Targets, actor_critic_loss
from arcadia.models import ActorCritic
from arcadia.models.normalize import ObservationNormalizer
from arcadia.types import Rollout

# Tensors without data, on a device of their own that does not mix with the CPU: they stand for a GPU's.
GPU = torch.device("meta")
T, B = 3, 2
PIXELS = EnvSpec((4, 84, 84), np.dtype(np.uint8), 6)
VECTOR = EnvSpec((5,), np.dtype(np.float32), 2, is_continuous=True)


def _model(spec: EnvSpec, **settings: object) -> ActorCritic:
    config = ModelConfig(normalization="none", hidden_sizes=(8,), core_size=6, **settings)
    return ActorCritic(config, spec, torch.bfloat16 if spec is PIXELS else torch.float32).to(GPU)


def _rollout(model: ActorCritic, observation: Tensor, spec: EnvSpec) -> Rollout:
    """Return a rollout with all but the model's own tensors on the CPU."""
    action = torch.zeros(T, B, spec.num_actions) if spec.is_continuous else torch.zeros(T, B, dtype=torch.int64)
    no, number = torch.zeros(T, B, dtype=torch.bool), torch.zeros(T, B)
    return Rollout(
        observation=observation,
        is_first=torch.zeros(T + 1, B, dtype=torch.bool),
        state=model.initial_state(B),
        action=action,
        reward=number,
        terminated=no,
        truncated=no,
        valid=~no,
        forced=no,
        log_prob=number,
        value=torch.zeros(T + 1, B),
    )


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (PIXELS, {"torso": "a3c"}),
        (PIXELS, {"torso": "nature", "core": "lstm", "towers": "separate"}),
        (PIXELS, {"torso": "a3c_bn", "core": "gru"}),
        (PIXELS, {"torso": "max_pool", "core": "lstm"}),
        (VECTOR, {"torso": "mlp", "policy": "gaussian", "action_std": "free"}),
        (VECTOR, {"torso": "mlp", "policy": "gaussian", "action_std": "state", "action_mean": "clamped_tanh"}),
        (VECTOR, {"torso": "mlp", "policy": "squashed"}),
    ],
)
def test_acting_and_learning_stay_on_the_models_device(spec: EnvSpec, settings: dict[str, object]) -> None:
    model = _model(spec, **settings)
    observation = torch.rand(T + 1, B, *model.input_shape, dtype=model.dtype, device=GPU)
    assert model.device == model.initial_state(B).device == GPU
    rollout = _rollout(model, observation, spec).to(GPU)
    tensors = [getattr(rollout, field.name) for field in fields(rollout) if field.name != "activations"]
    assert {tensor.device for tensor in tensors} == {GPU}
    kept = dataclasses.replace(rollout, activations=(rollout.value, rollout.reward))
    again = Rollout.of([*kept.tensors(), *kept.activations])
    assert all(getattr(again, field.name) is getattr(kept, field.name) for field in fields(kept)[:-1])
    assert again.activations == kept.activations
    targets = Targets(torch.zeros(T, B), torch.zeros(T, B)).to(GPU)
    with torch.no_grad():
        acting = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state)
    index = torch.zeros(1, dtype=torch.int64).to(GPU)
    half = (rollout.environments(index), targets.environments(index))
    for part, activations in (((rollout, targets), acting.activations), (half, ())):
        output = model(part[0].observation[:-1], part[0].is_first[:-1], part[0].state, activations)
        loss = actor_critic_loss(output, *part, LossConfig(clip_range=0.2))
        loss.total.backward()
    outputs = [*acting.policy, acting.value, acting.state, *acting.activations, *loss]
    assert {tensor.device for tensor in outputs} == {GPU}
    assert {parameter.grad.device for parameter in model.parameters()} == {GPU}


@pytest.mark.parametrize("normalization", ["per_element", "scalar", "scale", "none"])
def test_observations_reach_the_models_device_in_their_own_dtype(normalization: str) -> None:
    normalizer = ObservationNormalizer(ModelConfig(normalization=normalization), PIXELS)
    normalizer.load(torch.ones(normalizer.size, dtype=torch.float64), GPU)
    inputs = torch.empty(2, B, *normalizer.input_shape, dtype=torch.bfloat16, device=GPU)
    observation = np.zeros((B, *PIXELS.observation_shape), np.uint8)
    with _Crossings() as crossings:
        normalizer.apply(observation, inputs[0])
        normalizer.advance(observation, inputs[1], inputs[0], np.ones(B, np.bool_))
    assert crossings == [(torch.uint8, (B, 4, 84, 84)), (torch.uint8, (B, 1, 84, 84))]


class _Crossings(TorchDispatchMode):
    """Notes as what every tensor from the CPU arrives on the GPU."""

    def __enter__(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        self.noted: list[tuple[torch.dtype, tuple[int, ...]]] = []
        super().__enter__()
        return self.noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        from_cpu = any(isinstance(argument, Tensor) and argument.device == CPU for argument in args)
        if from_cpu and result.device == GPU:
            self.noted.append((result.dtype, tuple(result.shape)))
        return result


def test_workers_share_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    devices = [choose_device((2, 0, 3), worker) for worker in range(4)]
    assert devices == current == [torch.device("cuda", index) for index in (2, 0, 3, 2)]
    assert not torch.backends.cudnn.allow_tf32, "float32 is float32"
    assert choose_device((), 5) == CPU


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_gpus((0, 1, 0), "cpu") == (0, 1, 0)
    assert find_gpus((1,), "cuda") == (1,)
    assert find_gpus((), "cuda") == (0, 1)
    assert find_gpus((), "cpu") == ()
    with pytest.raises(UserError, match="gpu_ids 0 2: there is no GPU 2, the last of 2 is 1"):
        find_gpus((0, 2), "cuda")


def test_a_graph_reads_what_it_was_captured_with_and_there_is_one_for_each_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured: list[Tensor] = []

    class Graph:
        """Computes again what a capture has computed."""

        def __init__(self, held: tuple[Tensor, ...], output: Tensor) -> None:
            self.held, self.output = held, output

        def replay(self) -> None:
            self.output.copy_(self.held[0] * self.held[1])

    def capture(function: GraphedFunction, held: tuple[Tensor, ...]) -> tuple[Graph, Tensor]:
        output = torch.zeros_like(held[0])
        captured.append(output)
        return Graph(held, output), output

    monkeypatch.setattr(GraphedFunction, "_capture", capture)
    function = GraphedFunction(torch.mul, GPU, as_graph=True)
    a, b = torch.arange(3.0), torch.full((3,), 2.0)
    assert torch.equal(function(a, b), torch.tensor([0.0, 2.0, 4.0]))
    assert torch.equal(function(a[:2], b[:2]), torch.tensor([0.0, 2.0]))
    assert function(a + 1, b + 1) is captured[0]
    assert torch.equal(captured[0], torch.tensor([3.0, 6.0, 9.0]))
    assert len(captured) == 2
    assert torch.equal(a, torch.arange(3.0)), "the caller's own tensors are not written to"
    assert torch.equal(GraphedFunction(torch.mul, CPU, as_graph=False)(a, b), a * b)
    assert len(captured) == 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("30, 1000\\n50, 2500\\n", GpuUse(0.4, 3500.0)),
        ("[N/A], 1000\\n", None),
        ("", None),
    ],
)
def test_the_drivers_own_program_is_asked_how_busy_gpus_are(
    answer: str, expected: GpuUse | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/asked\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7,2")
    assert read_gpu_use((2, 1, 2)) == expected
    assert (tmp_path / "asked").read_text() == "--id=2,GPU-7\n"
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpu_use((0,)) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_gpu_memory_is_said_in_one_line_and_ends_the_run(error: RuntimeError) -> None:
    with pytest.raises(GpuMemoryError) as raised, translate_gpu_memory_errors():
        raise error
    failure = _failure(raised.value)
    assert failure.is_final
    assert "\n" not in failure.why
    assert str(error).splitlines()[0] in failure.why
    assert "lower num_workers" in failure.why


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), translate_gpu_memory_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
