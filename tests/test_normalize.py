"""Observation statistics that workers share: exact sums, freezing, snapshots, floors and clips."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from arcadia.config import ModelConfig, OptimizerConfig
from arcadia.envs import EnvSpec
from arcadia.models import ObservationNormalizer, build_model
from arcadia.models.normalize import RewardNormalizer
from arcadia.parameters import SharedMemoryStore, create_shared_state
from arcadia.returns import discounted_sums

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
T, B = 5, 3
STACK, HEIGHT, WIDTH = 4, 8, 12
D = 7
PIXELS = EnvSpec((STACK, HEIGHT, WIDTH), np.dtype(np.uint8), 2)
VECTOR = EnvSpec((D,), np.dtype(np.float32), 2)


def _normalizer(
    spec: EnvSpec, kind: str = "per_element", steps: int = 1000, torso: Literal["a3c", "max_pool", "custom"] = "a3c"
) -> ObservationNormalizer:
    return ObservationNormalizer(ModelConfig(torso=torso, normalization=kind, normalization_steps=steps), spec)


def _frames(seed: int, num_rows: int = T * B) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(num_rows, HEIGHT, WIDTH), dtype=np.uint8)


def _valid(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((T, B)) < 0.7


def _gather(normalizer: ObservationNormalizer, rows: np.ndarray, valid: np.ndarray | None = None) -> Tensor:
    """Return the statistics of T * B rows."""
    valid = np.ones((T, B), np.bool_) if valid is None else valid
    keep, add = normalizer.gather(rows.reshape(T, B, *rows.shape[1:]), valid)
    assert keep == 1.0
    return add


def _apply(normalizer: ObservationNormalizer, observation: np.ndarray, dtype=torch.float32) -> Tensor:
    """Return the model input in the layout of `observation`."""
    inputs = torch.full((len(observation), *normalizer.input_shape), torch.nan, dtype=dtype)
    normalizer.apply(observation, out=inputs)
    if inputs.shape == observation.shape:
        return inputs
    out = torch.empty(observation.shape, dtype=dtype)
    n = observation.shape[-1] // inputs.shape[-2]
    for c, y, x in np.ndindex(*observation.shape[1:]):
        out[:, c, y, x] = inputs[:, y // n, x // n, (c * n + y % n) * n + x % n]
    return out


def _observation(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(B, *PIXELS.observation_shape), dtype=np.uint8)


def test_statistics_of_two_workers_add_up_to_one_pass_over_everything() -> None:
    normalizer = _normalizer(PIXELS)
    total = torch.zeros(normalizer.size, dtype=torch.float64)
    everything = []
    for seed in range(4):  # two workers, two rollouts each; in each, sums of squares beyond what float32 can count
        rows = 255 - _frames(seed, 40 * 20).reshape(40, 20, HEIGHT, WIDTH) // 8
        valid = np.random.default_rng(seed).random((40, 20)) < 0.7
        total += normalizer.gather(rows, valid)[1]
        everything.append(rows[valid])
    rows = np.concatenate(everything).astype(np.int64)
    assert normalizer.size == len(total) == 1 + 2 * HEIGHT * WIDTH
    assert total.dtype == torch.float64
    assert total[0] == len(rows)
    sums, squares = total[1:].view(2, HEIGHT, WIDTH).numpy()
    assert (sums == rows.sum(0)).all()
    assert (squares == (rows**2).sum(0)).all()
    assert squares.max() / 4 > 2**24


def test_reset_rows_are_not_counted() -> None:
    normalizer = _normalizer(PIXELS)
    rows, valid = _frames(1), _valid(1)
    first = _gather(normalizer, rows, valid)
    rows[~valid.ravel()] = 255 - rows[~valid.ravel()]
    assert 0 < (~valid).sum() < T * B
    assert torch.equal(_gather(normalizer, rows, valid), first)
    assert not torch.equal(_gather(normalizer, rows, ~valid), first)
    none = _gather(normalizer, rows, np.zeros((T, B), np.bool_))
    assert none.count_nonzero() == 0


def test_pixels_are_standardized_by_the_newest_frames_mean_and_std_in_every_frame_of_the_stack() -> None:
    normalizer = _normalizer(PIXELS)
    rows = (_frames(1) * np.linspace(0.1, 1, WIDTH)).astype(np.uint8)  # another spread in every column
    normalizer.load(_gather(normalizer, rows))
    mean, variance = rows.astype(np.float64).mean(0), rows.astype(np.float64).var(0)
    observation = _observation(2)
    expected = np.clip((observation - mean) / np.sqrt(variance + 5.0**2), -20, 20)
    np.testing.assert_allclose(_apply(normalizer, observation).numpy(), expected, atol=1e-4, rtol=0)


def test_vectors_are_standardized_per_dimension() -> None:
    normalizer = _normalizer(VECTOR)
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(T * B, D)) * np.arange(D) + np.arange(D)).astype(np.float32)  # dimension 0 is constant
    normalizer.load(_gather(normalizer, rows))
    mean, variance = rows.astype(np.float64).mean(0), rows.astype(np.float64).var(0)
    observation = rng.normal(size=(B, D)).astype(np.float32)
    expected = np.clip((observation - mean) / np.sqrt(variance + 0.01**2), -20, 20)
    assert (np.abs(expected[:, 0]) == 20).any()
    np.testing.assert_allclose(_apply(normalizer, observation).numpy(), expected, atol=1e-4, rtol=0)


def test_snapshot_holds_until_the_next_load() -> None:
    normalizer, observation = _normalizer(PIXELS), _observation(0)
    first_statistics = _gather(normalizer, _frames(1))
    normalizer.load(first_statistics)
    before = _apply(normalizer, observation)
    more = first_statistics + _gather(normalizer, _frames(2) // 3)
    first_statistics += 1e6  # the shared vector goes on changing
    assert torch.equal(_apply(normalizer, observation), before)
    normalizer.load(more)
    after = _apply(normalizer, observation)
    assert not torch.equal(after, before)
    fresh = _normalizer(PIXELS)
    fresh.load(more)
    assert torch.equal(_apply(fresh, observation), after)  # nothing of the first snapshot stays


def test_nothing_changes_once_the_limit_is_reached() -> None:
    optimizer = OptimizerConfig()
    model = build_model(ModelConfig(torso="mlp", normalization_steps=2 * T * B), PIXELS, seed=0)
    normalizer = model.normalizer
    state = create_shared_state(optimizer, torch.zeros(3), num_workers=2, statistics_size=normalizer.size)
    stores = [SharedMemoryStore(state, optimizer, worker=worker, total_steps=100) for worker in range(2)]
    observation = _observation(0)
    inputs = []
    for number in range(4):
        stores[0].pull_statistics(model)
        assert normalizer.is_frozen == (number >= 2)  # 0, 15 rows: not yet; 30 rows: frozen
        inputs.append(_apply(normalizer, observation))
        rows = (_frames(number) // (number + 1)).reshape(T, B, 1, HEIGHT, WIDTH)
        statistics = model.gather_statistics(rows, torch.zeros(T, B), torch.zeros(T, B), np.ones((T, B), np.bool_))
        assert (statistics is None) == normalizer.is_frozen
        stores[number % 2].count(T * B, 0, 0, statistics)
    assert not torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[1], inputs[2])
    assert torch.equal(inputs[2], inputs[3])


def test_pixels_that_first_change_after_the_freeze_stay_within_the_clip() -> None:
    normalizer = _normalizer(PIXELS)
    rows = _frames(1)
    rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 2] = 0, 255, 87
    normalizer.load(_gather(normalizer, rows))
    observation = np.zeros((B, STACK, HEIGHT, WIDTH), np.uint8)
    observation[0, :, 0, 0], observation[1, :, 0, 0] = 255, 10
    observation[2, :, 0, 1] = 0
    observation[:, :, 0, 2] = 87
    out = _apply(normalizer, observation)
    assert out.abs().max() == 20
    assert (out[0, :, 0, 0] == 20).all()
    torch.testing.assert_close(out[1, :, 0, 0], torch.full((STACK,), 10 / 5.0))  # the std's floor is 5 of 255
    assert (out[2, :, 0, 1] == -20).all()
    assert (out[:, :, 0, 2] == 0).all()


def test_by_default_a_pixel_that_begins_to_change_late_comes_to_weigh_what_others_do() -> None:
    """The digits of a score: frozen before the first point, they drowned the ball, and games at 20 points were lost."""
    model = build_model(ModelConfig(torso="mlp"), PIXELS, seed=0)
    dark, half = np.full((T * B, HEIGHT, WIDTH), 87, np.uint8), np.full((T * B, HEIGHT, WIDTH), 87, np.uint8)
    half[::2, 2, 3] = 236
    total = torch.zeros(model.statistics_size, dtype=torch.float64)
    observation = np.full((B, STACK, HEIGHT, WIDTH), 87, np.uint8)
    observation[1, :, 2, 3] = 236
    inputs = []
    for rows in (dark, half, half, half):
        total += 100_000 * _gather(model.normalizer, rows)
        model.load_statistics(total)
        assert not model.normalizer.is_frozen
        inputs.append(float(_apply(model.normalizer, observation)[1, 0, 2, 3]))
    share = 8 / 15 * 3 / 4  # of the rows in which it was lit, at the end
    assert inputs[0] == 20  # the clip
    assert inputs[-1] == pytest.approx((1 - share) * 149 / math.sqrt(share * (1 - share) * 149**2 + 25), rel=1e-5)
    assert sorted(inputs, reverse=True) == inputs


def test_pixels_are_divided_by_255_before_the_first_statistics() -> None:
    normalizer, observation = _normalizer(PIXELS), _observation(0)
    for _ in range(2):
        expected = torch.from_numpy(observation).float() / 255
        torch.testing.assert_close(_apply(normalizer, observation), expected)
        assert not normalizer.is_frozen
        normalizer.load(torch.zeros(normalizer.size, dtype=torch.float64))


def test_vectors_pass_unchanged_before_the_first_statistics() -> None:
    observation = np.random.default_rng(0).normal(size=(B, D)).astype(np.float32)
    assert torch.equal(_apply(_normalizer(VECTOR), observation), torch.from_numpy(observation))


@pytest.mark.parametrize(("kind", "divisor"), [("scale", 255.0), ("none", 1.0)])
def test_scale_divides_pixels_by_255_and_none_leaves_them(kind: str, divisor: float) -> None:
    normalizer, observation = _normalizer(PIXELS, kind), _observation(0)
    assert normalizer.size == 0
    assert normalizer.is_frozen  # nothing is gathered
    for _ in range(2):
        torch.testing.assert_close(_apply(normalizer, observation), torch.from_numpy(observation).float() / divisor)
        normalizer.load(torch.zeros(0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["scale", "none"])
def test_scale_and_none_leave_vectors_unchanged(kind: str) -> None:
    observation = 100 * np.random.default_rng(0).normal(size=(B, D)).astype(np.float32)
    assert torch.equal(_apply(_normalizer(VECTOR, kind), observation), torch.from_numpy(observation))


@pytest.mark.parametrize("kind", ["per_element", "scale", "none"])
def test_input_has_the_models_dtype(kind: str) -> None:
    normalizer = _normalizer(PIXELS, kind)
    if kind == "per_element":
        normalizer.load(_gather(normalizer, _frames(1)))
    out = _apply(normalizer, _observation(0), torch.bfloat16)
    torch.testing.assert_close(out.float(), _apply(normalizer, _observation(0)), atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("spec", [PIXELS, VECTOR])
@pytest.mark.parametrize("kind", ["per_element", "scale", "none"])
def test_raw_observation_is_left_alone(kind: str, spec: EnvSpec) -> None:
    normalizer = _normalizer(spec, kind)
    if kind == "per_element":
        rows = _frames(1) if spec.is_image else np.arange(T * B * D, dtype=np.float32).reshape(T * B, D)
        normalizer.load(_gather(normalizer, rows))
    observation = _observation(0) if spec.is_image else np.full((B, D), 30, np.float32)
    before = observation.copy()
    first, second = _apply(normalizer, observation), _apply(normalizer, observation)
    assert (observation == before).all()
    assert torch.equal(first, second)


def test_scalar_averages_equal_the_sources_loop_for_one_worker() -> None:
    """rl_a3c_pytorch: decaying averages of each frame's mean and standard deviation, corrected for their start."""
    normalizer = _normalizer(PIXELS, "scalar")
    frames = _frames(0, 2 * T * B)
    slot = torch.zeros(3, dtype=torch.float64)
    mean = std = 0.0
    for part in frames.reshape(2, T, B, 1, HEIGHT, WIDTH):
        keep, add = normalizer.gather(part, np.ones((T, B), np.bool_))
        slot = keep * slot + add
        for frame in part.reshape(T * B, -1):
            mean = 0.9999 * mean + 0.0001 * frame.mean()
            std = 0.9999 * std + 0.0001 * frame.std()
    correction = 1 - 0.9999 ** (2 * T * B)
    assert normalizer.size == 3
    normalizer.load(slot)
    assert not normalizer.is_frozen
    observation = _observation(3)
    expected = (observation - mean / correction) / (std / correction)
    np.testing.assert_allclose(_apply(normalizer, observation).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_scalar_averages_of_workers_are_weighted_by_what_they_have_seen() -> None:
    normalizer = _normalizer(PIXELS, "scalar")
    valid = np.zeros((T, B), np.bool_)
    valid[0, 0] = True
    dark, bright = np.zeros((T, B, 1, HEIGHT, WIDTH), np.uint8), np.full((T, B, 1, HEIGHT, WIDTH), 200, np.uint8)
    dark[..., ::2], bright[..., ::2] = 100, 220  # mean 50 with std 50, mean 210 with std 10
    _, one_row = normalizer.gather(dark, valid)
    _, all_rows = normalizer.gather(bright, np.ones((T, B), np.bool_))
    normalizer.load(one_row + all_rows)
    weights = np.array([1e-4, 1 - 0.9999**15])
    mean, std = weights @ [50, 210] / weights.sum(), weights @ [50, 10] / weights.sum()
    observation = _observation(3)
    np.testing.assert_allclose(
        _apply(normalizer, observation).numpy(), (observation - mean) / std, rtol=1e-4, atol=1e-4
    )


def test_scalar_standard_deviation_has_a_floor_and_the_input_a_clip() -> None:
    normalizer = _normalizer(PIXELS, "scalar")
    _, statistics = normalizer.gather(np.full((T, B, 1, HEIGHT, WIDTH), 87, np.uint8), np.ones((T, B), np.bool_))
    normalizer.load(statistics)
    observation = np.full((B, *PIXELS.observation_shape), 92, np.uint8)
    torch.testing.assert_close(_apply(normalizer, observation), torch.ones(observation.shape), atol=1e-4, rtol=0)
    observation[0] = 255
    assert _apply(normalizer, observation).max() == 20


def test_colours_have_statistics_each_over_every_frame_of_a_stack() -> None:
    spec = EnvSpec((6, HEIGHT, WIDTH), np.dtype(np.uint8), 2, frame_channels=3)
    normalizer = _normalizer(spec)
    rows = np.random.default_rng(0).integers(256, size=(T, B, 3, HEIGHT, WIDTH), dtype=np.uint8)
    observation = np.random.default_rng(1).integers(256, size=(B, 6, HEIGHT, WIDTH), dtype=np.uint8)
    assert (normalizer.newest(observation) == observation[:, 3:]).all()
    normalizer.load(normalizer.gather(rows, np.ones((T, B), np.bool_))[1])
    mean, variance = rows.mean((0, 1)), rows.astype(float).var((0, 1))
    expected = (observation.reshape(B, 2, 3, HEIGHT, WIDTH) - mean) / np.sqrt(variance + 25)
    np.testing.assert_allclose(
        _apply(normalizer, observation).numpy(), expected.reshape(observation.shape), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("torso", "width", "n"), [("a3c", WIDTH, 4), ("a3c", WIDTH + 1, 1), ("max_pool", WIDTH, 1), ("custom", WIDTH, None)]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["none", "scale", "per_element", "scalar"])
def test_converting_the_newest_frame_alone_is_converting_the_whole_stack(
    kind: str, channels: int, torso: Literal["a3c", "max_pool", "custom"], width: int, n: int | None
) -> None:
    spec = EnvSpec((4 * channels, HEIGHT, width), np.dtype(np.uint8), 2, frame_channels=channels)
    normalizer = _normalizer(spec, kind, torso=torso)
    shape = (HEIGHT // n, width // n, 4 * channels * n * n) if n else spec.observation_shape
    assert normalizer.input_shape == shape
    frames = np.random.default_rng(0).integers(256, size=(5 * channels, B, HEIGHT, width), dtype=np.uint8)
    first, second = frames[:-channels].swapaxes(0, 1), frames[channels:].swapaxes(0, 1)
    for is_known, others in itertools.product((False, True), ([], [1], [0, 2])):
        shifted = ~np.isin(np.arange(B), others)
        if is_known and normalizer.size:
            rows = normalizer.newest(first)[None]
            normalizer.load(normalizer.gather(rows, np.ones((1, B), np.bool_))[1])
        before, out, expected = torch.full((3, B, *shape), torch.nan)
        normalizer.apply(first, before)
        observation = second.copy()
        observation[others] = 255 - observation[others]
        normalizer.advance(observation, out, before, shifted)
        normalizer.apply(observation, expected)
        assert torch.equal(out, expected)


# -------------------------------------------------------------------------------------------------------------- rewards


def test_rewards_are_divided_by_the_deviation_of_all_workers_discounted_returns() -> None:
    """Two workers in turns, five rollouts each, with ends of episodes: against one pass over everything."""
    gamma, generator = 0.9, torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(torso="mlp", normalization="none", normalize_rewards=True), VECTOR, seed=1)
    assert model.reward_normalizer is not None
    optimizer = OptimizerConfig()
    state = create_shared_state(optimizer, torch.zeros(3), num_workers=2, statistics_size=model.statistics_size)
    stores = [SharedMemoryStore(state, optimizer, worker=worker, total_steps=100) for worker in range(2)]
    reward = 3 * torch.randn(2, 5 * T, B, generator=generator) + 1
    ended = torch.rand(2, 5 * T, B, generator=generator) < 0.1
    valid = torch.rand(2, 5 * T, B, generator=generator) < 0.9
    seen = []
    carried = [torch.zeros(B), torch.zeros(B)]
    for part in range(5):
        rows = slice(part * T, (part + 1) * T)
        for worker in range(2):
            returns = torch.empty(T, B)
            trace = (~ended[worker, rows]).float()
            carried[worker] = discounted_sums(reward[worker, rows], carried[worker], trace, gamma, out=returns)
            mask = valid[worker, rows].numpy()
            statistics = model.gather_statistics(np.zeros((T, B, D)), torch.zeros(T, B, D), returns, mask)
            stores[worker].count(T * B, 0, 0, statistics)
    for worker, b in itertools.product(range(2), range(B)):
        total = 0.0
        for t in range(5 * T):
            total = float(reward[worker, t, b]) + gamma * total
            if valid[worker, t, b]:
                seen.append(total)
            if ended[worker, t, b]:
                total = 0.0
    stores[0].pull_statistics(model)
    scaled = model.reward_normalizer.apply(torch.tensor([2.0, -1e9]))
    assert scaled.tolist() == pytest.approx([2.0 / np.std(seen), -10.0], rel=1e-5)


def test_rewards_are_what_they_are_before_the_first_statistics_and_a_nan_leaves_no_trace() -> None:
    normalizer = RewardNormalizer()
    normalizer.load(torch.zeros(3, dtype=torch.float64))
    assert normalizer.apply(torch.tensor(2.5)) == 2.5
    assert normalizer.gather(torch.tensor([1.0, math.nan, 3.0, math.inf])).tolist() == [2.0, 4.0, 10.0]
    out = torch.empty(3, 1)
    ended = torch.tensor([[1.0], [0.0], [1.0]])
    carried = discounted_sums(torch.tensor([[math.nan], [1.0], [2.0]]), torch.zeros(1), ended, 0.5, out=out)
    assert out.isnan().flatten().tolist() == [True, True, False]
    assert carried.tolist() == [1.0]


def test_images_that_are_no_bytes_are_standardized_as_vectors_are() -> None:
    """Planes of 0 and 1 would all but vanish beside what pixels' deviations are kept above, or divided by 255."""
    spec = EnvSpec((2, HEIGHT, WIDTH), np.dtype(np.float32), 2, frame_channels=2)
    normalizer = _normalizer(spec)
    rows = np.random.default_rng(0).integers(2, size=(T * B, 2, HEIGHT, WIDTH)).astype(np.float32)
    assert torch.equal(_apply(normalizer, rows), torch.from_numpy(rows)), "before the first statistics"
    normalizer.load(_gather(normalizer, rows))
    expected = (rows - rows.mean(0)) / np.sqrt(rows.astype(float).var(0) + 1e-4)
    np.testing.assert_allclose(_apply(normalizer, rows).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(_apply(_normalizer(spec, "scale"), rows), torch.from_numpy(rows))
