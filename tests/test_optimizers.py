"""Optimizers over one shared vector: steps by hand, state that processes share, schedules, versions."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from arcadia.config import OptimizerConfig
from arcadia.parameters import ENV_STEPS, UPDATES, SharedMemoryStore, SharedState, create_shared_state
from arcadia.types import StatisticsUpdate

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
P, K = 7, 5
TOTAL_STEPS = 1000
GRADIENTS = np.random.default_rng(0).normal(size=(4, P)).astype(np.float32) * [[1.0], [30.0], [0.1], [1.0]]
START = np.linspace(-1, 1, P)
Vector = np.ndarray[Any, Any]


def _config(optimizer: str, **settings: Any) -> OptimizerConfig:
    """Return settings under which every term of the update matters."""
    defaults = {"lr": 0.1, "schedule": "constant", "epsilon": 0.1, "beta1": 0.8, "beta2": 0.6, "alpha": 0.7}
    return OptimizerConfig(optimizer=optimizer, **(defaults | settings))


def _state(config: OptimizerConfig, num_workers: int = 1) -> SharedState:
    parameters = torch.tensor(START, dtype=torch.float32)
    return create_shared_state(config, parameters, num_workers=num_workers, statistics_size=K)


def _added(statistics: torch.Tensor) -> StatisticsUpdate:
    """Return an update that keeps everything and adds this."""
    return StatisticsUpdate(torch.ones(len(statistics)).double(), statistics.double())


def _store(state: SharedState, config: OptimizerConfig, worker: int = 0) -> SharedMemoryStore:
    return SharedMemoryStore(state, config, worker=worker, total_steps=TOTAL_STEPS)


def _push(store: SharedMemoryStore, gradient: Vector) -> int:
    return store.push(torch.tensor(gradient, dtype=torch.float32))


def _rmsprop(gradients: Vector) -> list[Vector]:
    """g <- alpha g + (1 - alpha) grad^2; theta <- theta - lr grad / sqrt(g + epsilon) (A3C paper, eq. S2 and S3)."""
    theta, g, path = START.copy(), np.zeros(P), []
    for gradient in gradients:
        g = 0.7 * g + 0.3 * gradient**2
        theta = theta - 0.1 * gradient / np.sqrt(g + 0.1)
        path.append(theta)
    return path


def _adam(gradients: Vector, keep_maximum: bool = False) -> list[Vector]:
    """Adam (arXiv:1412.6980, algorithm 1); AMSGrad (arXiv:1904.09237) divides by the largest v so far."""
    theta, m, v, largest, path = START.copy(), np.zeros(P), np.zeros(P), np.zeros(P), []
    for t, gradient in enumerate(gradients, start=1):
        m = 0.8 * m + 0.2 * gradient
        v = 0.6 * v + 0.4 * gradient**2
        largest = np.maximum(largest, v) if keep_maximum else v
        theta = theta - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(largest / (1 - 0.6**t)) + 0.1)
        path.append(theta)
    return path


def _amsgrad(gradients: Vector) -> list[Vector]:
    return _adam(gradients, keep_maximum=True)


@pytest.mark.parametrize(("optimizer", "by_hand"), [("rmsprop", _rmsprop), ("adam", _adam), ("amsgrad", _amsgrad)])
def test_consecutive_updates_equal_steps_by_hand(optimizer: str, by_hand: Callable[[Vector], list[Vector]]) -> None:
    config = _config(optimizer)
    state = _state(config)
    store = _store(state, config)
    buffer = torch.empty(P)  # one gradient buffer that is overwritten, as compute_gradient's is
    for gradient, expected in zip(GRADIENTS, by_hand(GRADIENTS), strict=True):
        buffer.copy_(torch.from_numpy(gradient))
        store.push(buffer)
        np.testing.assert_allclose(state.parameters.numpy(), expected, atol=1e-6, rtol=0)


def test_amsgrad_remembers_a_big_gradient_where_adam_forgets_it() -> None:
    gradients = np.stack([np.full(P, 100.0), *[np.full(P, 0.5)] * 5])
    steps = {}
    for optimizer, by_hand in (("adam", _adam), ("amsgrad", _amsgrad)):
        config = _config(optimizer)
        state = _state(config)
        store = _store(state, config)
        for gradient in gradients[:-1]:
            _push(store, gradient)
        before = state.parameters.clone()
        _push(store, gradients[-1])
        np.testing.assert_allclose(state.parameters.numpy(), by_hand(gradients)[-1], atol=1e-6, rtol=0)
        steps[optimizer] = float((before - state.parameters)[0])
    assert 0 < 2 * steps["amsgrad"] < steps["adam"]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "amsgrad"])
def test_push_follows_the_schedule_of_all_workers_steps(optimizer: str) -> None:
    def first_step(env_steps: tuple[int, int]) -> torch.Tensor:
        config = _config(optimizer, schedule="linear")
        state = _state(config, num_workers=2)
        stores = [_store(state, config, worker) for worker in range(2)]
        for store, steps in zip(stores, env_steps, strict=True):
            store.count(steps, 4 * steps, 0, None)
        before = state.parameters.clone()
        _push(stores[0], GRADIENTS[0])
        return state.parameters - before

    whole = first_step((0, 0))
    assert (whole != 0).all()
    torch.testing.assert_close(first_step((300, 200)), whole / 2, atol=1e-6, rtol=0)
    assert first_step((600, 400)).count_nonzero() == 0


def _push_what_is_asked(
    connection: Connection, states: dict[str, SharedState], configs: dict[str, OptimizerConfig], worker: int
) -> None:
    """Main function of a spawned process: push the gradients that are asked for, answer with versions."""
    torch.set_num_threads(1)
    stores = {name: _store(states[name], configs[name], worker) for name in states}
    while (request := connection.recv()) is not None:
        optimizer, number = request
        connection.send(_push(stores[optimizer], GRADIENTS[number]))


def test_two_processes_see_and_advance_the_same_statistics() -> None:
    by_hand = {"rmsprop": _rmsprop(GRADIENTS), "amsgrad": _amsgrad(GRADIENTS)}
    configs = {name: _config(name) for name in by_hand}
    states = {name: _state(configs[name], num_workers=2) for name in by_hand}
    context = torch.multiprocessing.get_context("spawn")
    connections, processes = [], []
    for worker in range(2):
        here, there = context.Pipe()
        process = context.Process(target=_push_what_is_asked, args=(there, states, configs, worker), daemon=True)
        process.start()
        there.close()
        connections.append(here)
        processes.append(process)
    for number, worker in enumerate([0, 1, 1, 0]):
        for name, state in states.items():
            connections[worker].send((name, number))
            assert connections[worker].recv() == number
            np.testing.assert_allclose(state.parameters.numpy(), by_hand[name][number], atol=1e-6, rtol=0)
            assert all((tensor != 0).all() for tensor in state.optimizer_state.values())
        assert states["amsgrad"].optimizer_state["step"].tolist() == [number + 1]
    for connection, process in zip(connections, processes, strict=True):
        connection.send(None)
        process.join(30)
        assert process.exitcode == 0
    assert [state.counters[:, UPDATES].tolist() for state in states.values()] == [[2, 2], [2, 2]]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "amsgrad"])
def test_private_statistics_keep_separate_rows(optimizer: str) -> None:
    config = _config(optimizer, shared_statistics=False)
    state = _state(config, num_workers=3)
    stores = [_store(state, config, worker) for worker in range(3)]
    _push(stores[1], GRADIENTS[0])
    first = {name: tensor.clone() for name, tensor in state.optimizer_state.items()}
    for tensor in first.values():
        assert (tensor[1] != 0).all()
        assert tensor[[0, 2]].count_nonzero() == 0
    _push(stores[2], GRADIENTS[0])
    for name, tensor in state.optimizer_state.items():
        assert torch.equal(tensor[1], first[name][1])
        assert torch.equal(tensor[2], first[name][1])  # as if worker 1 had never pushed
        assert tensor[0].count_nonzero() == 0


@pytest.mark.parametrize("shared_statistics", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        ("rmsprop", {"square_avg"}),
        ("adam", {"exp_avg", "exp_avg_sq", "step"}),
        ("amsgrad", {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}),
    ],
)
def test_everything_lives_in_shared_memory_and_stays_there(
    optimizer: str, names: set[str], shared_statistics: bool
) -> None:
    config = _config(optimizer, shared_statistics=shared_statistics)
    initial = torch.tensor(START, dtype=torch.float32)
    state = create_shared_state(config, initial, num_workers=2, statistics_size=K)
    tensors = [state.parameters, state.statistics, state.counters, state.stop, *state.optimizer_state.values()]
    assert set(state.optimizer_state) == names
    assert all(tensor.is_shared() for tensor in tensors)
    assert not initial.is_shared()
    copies = 1 if shared_statistics else 2
    for name, tensor in state.optimizer_state.items():
        assert tensor.shape == ((copies,) if name == "step" else (copies, P))
    assert state.statistics.shape == (2, K)
    pointers = [tensor.data_ptr() for tensor in tensors]
    for worker in range(2):
        store = _store(state, config, worker)
        _push(store, GRADIENTS[0])
        store.count(1, 4, 0, _added(torch.ones(K)))
    assert [tensor.data_ptr() for tensor in tensors] == pointers
    assert all(tensor.count_nonzero() for tensor in tensors if tensor is not state.stop)
    assert initial.tolist() == pytest.approx(START.tolist())  # the caller's tensor was copied


def test_push_returns_the_version_just_before_it() -> None:
    config = _config("adam")
    state = _state(config, num_workers=3)
    stores = [_store(state, config, worker) for worker in range(3)]
    pulled = state.counter(UPDATES)
    assert pulled == 0
    assert [_push(stores[worker], GRADIENTS[0]) for worker in (0, 1, 1)] == [0, 1, 2]
    assert _push(stores[2], GRADIENTS[0]) - pulled == 3  # three updates by others since worker 2 pulled
    assert state.counters[:, UPDATES].tolist() == [1, 2, 1]


def test_each_worker_counts_in_its_own_row() -> None:
    config = _config("adam")
    state = _state(config, num_workers=3)
    stores = [_store(state, config, worker) for worker in range(3)]
    for _ in range(2):
        stores[0].count(5, 20, 1, _added(torch.arange(K)))
        stores[2].count(7, 28, 0, None)
    assert state.counters.tolist() == [[10, 40, 0, 2], [0, 0, 0, 0], [14, 56, 0, 0]]
    assert state.statistics.tolist() == [[0, 2, 4, 6, 8], [0] * K, [0] * K]
    assert state.counter(ENV_STEPS) == 24


def test_learning_rate_follows_the_episodes_of_all_workers() -> None:
    def first_step(episodes: tuple[int, int]) -> torch.Tensor:
        config = _config("rmsprop", schedule="log_episodes")
        state = _state(config, num_workers=2)
        stores = [_store(state, config, worker) for worker in range(2)]
        for store, count in zip(stores, episodes, strict=True):
            store.count(1, 4, count, None)
        before = state.parameters.clone()
        _push(stores[0], GRADIENTS[0])
        return state.parameters - before

    whole = first_step((0, 0))
    torch.testing.assert_close(first_step((4_000, 5_000)), whole / 2, atol=1e-6, rtol=0)  # log10(100)
    torch.testing.assert_close(first_step((1_000, 0)), whole / np.log10(20), atol=1e-6, rtol=0)


def test_statistics_that_decay_keep_a_part_of_their_own_slot() -> None:
    config = _config("adam")
    state = _state(config, num_workers=2)
    stores = [_store(state, config, worker) for worker in range(2)]
    keep, add = torch.full((K,), 0.5, dtype=torch.float64), torch.ones(K, dtype=torch.float64)
    for _ in range(3):
        stores[0].count(1, 4, 0, StatisticsUpdate(keep, add))
    stores[1].count(1, 4, 0, StatisticsUpdate(keep, 10 * add))
    assert state.statistics.tolist() == [[1.75] * K, [10.0] * K]
