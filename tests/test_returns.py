"""Returns and advantages against slow loops written from the papers, hand numbers and identities."""

import numpy as np
import pytest
import torch
from torch import Tensor

from arcadia.returns import discounted_sums, gae, n_step_returns

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
T, B = 5, 3
GAMMA, LAMBDA = 0.9, 0.8

# One letter per row: "." plays on, "L" loses a life (terminated, the game goes on), "G" is game over, "T" a time
# limit, "R" the reset row after G or T.
SCRIPTS = [
    (".....", "..L..", "L.L.L"),
    ("..GR.", "TR.GR", "GR..L"),
    ("....T", "....G", "...TR"),
    ("..TRG", "R..LT", "GRTRL"),
    ("R.L.G", ".LGR.", "TRGRT"),
]


def _borders(scripts: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return terminated, truncated and valid [T, B] of one script per environment."""
    letters = np.array([list(script) for script in scripts]).T  # [T, B]
    return tuple(torch.from_numpy(np.isin(letters, kinds)) for kinds in (["L", "G"], ["T"], [".", "L", "G", "T"]))


def _discount_and_trace(terminated: Tensor, truncated: Tensor) -> tuple[Tensor, Tensor]:
    return GAMMA * (~terminated).float(), (~(terminated | truncated)).float()


def _reward_and_value(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, generator=generator), torch.randn(T + 1, B, generator=generator)


def _last_row(t: int, terminated: Tensor, truncated: Tensor) -> int:
    """Return the row at which the play that contains row t (of one environment) or the rollout ends."""
    ends = [i for i in range(t, T) if terminated[i] or truncated[i]]
    return ends[0] if ends else T - 1


def _slow_n_step(reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """Sum forwards: R_t = r_t + gamma r_{t+1} + ... + gamma^k V(s_{t+k}) (A3C paper, section 4), 0 for a terminal s."""
    returns = torch.zeros(T, B)
    for b in range(B):
        for t in range(T):
            end = _last_row(t, terminated[:, b], truncated[:, b])
            bootstrap = 0.0 if terminated[end, b] else float(value[end + 1, b])
            returns[t, b] = sum(GAMMA ** (i - t) * float(reward[i, b]) for i in range(t, end + 1))
            returns[t, b] += GAMMA ** (end + 1 - t) * bootstrap
    return returns


def _slow_gae(reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, lambda_: float) -> Tensor:
    """Sum forwards: A_t = sum_l (gamma lambda)^l delta_{t+l} (GAE paper, eq. 16)."""
    advantages = torch.zeros(T, B)
    for b in range(B):
        for t in range(T):
            for i in range(t, _last_row(t, terminated[:, b], truncated[:, b]) + 1):
                following = 0.0 if terminated[i, b] else float(value[i + 1, b])
                delta = float(reward[i, b]) + GAMMA * following - float(value[i, b])
                advantages[t, b] += (GAMMA * lambda_) ** (i - t) * delta
    return advantages


@pytest.mark.parametrize("seed", range(len(SCRIPTS)))
def test_n_step_returns_equal_the_papers_sums(seed: int) -> None:
    terminated, truncated, valid = _borders(SCRIPTS[seed])
    reward, value = _reward_and_value(seed)
    returns = n_step_returns(reward, value, *_discount_and_trace(terminated, truncated))
    slow = _slow_n_step(reward, value, terminated, truncated)
    assert returns.shape == (T, B)
    torch.testing.assert_close(returns[valid], slow[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lambda_", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("seed", range(len(SCRIPTS)))
def test_gae_equals_the_papers_sums(seed: int, lambda_: float) -> None:
    terminated, truncated, valid = _borders(SCRIPTS[seed])
    reward, value = _reward_and_value(seed)
    advantages = gae(reward, value, *_discount_and_trace(terminated, truncated), lambda_)
    slow = _slow_gae(reward, value, terminated, truncated, lambda_)
    assert advantages.shape == (T, B)
    torch.testing.assert_close(advantages[valid], slow[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(len(SCRIPTS)))
def test_gae_with_lambda_1_is_the_n_step_return_minus_the_value(seed: int) -> None:
    terminated, truncated, valid = _borders(SCRIPTS[seed])
    reward, value = _reward_and_value(seed)
    borders = _discount_and_trace(terminated, truncated)
    expected = n_step_returns(reward, value, *borders) - value[:-1]
    torch.testing.assert_close(gae(reward, value, *borders, 1.0)[valid], expected[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(len(SCRIPTS)))
def test_gae_with_lambda_0_is_the_one_step_td_error(seed: int) -> None:
    terminated, truncated, _ = _borders(SCRIPTS[seed])
    reward, value = _reward_and_value(seed)
    advantages = gae(reward, value, *_discount_and_trace(terminated, truncated), 0.0)
    following = torch.where(terminated, torch.zeros(()), value[1:])
    torch.testing.assert_close(advantages, reward + GAMMA * following - value[:-1], atol=1e-6, rtol=0)


def _one_environment(script: str, reward: list[float], value: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return reward, value, discount and trace with gamma 0.5 of one environment."""
    terminated, truncated, _ = _borders((script,))
    discount, trace = _discount_and_trace(terminated, truncated)
    columns = (torch.tensor(numbers, dtype=torch.float32)[:, None] for numbers in (reward, value))
    return (*columns, discount / GAMMA * 0.5, trace)


@pytest.mark.parametrize(
    ("script", "returns"),
    [
        ("...", [1 + 2 / 2 + 4 / 4 + 80 / 8, 2 + 4 / 2 + 80 / 4, 4 + 80 / 2]),
        ("..T", [1 + 2 / 2 + 4 / 4 + 80 / 8, 2 + 4 / 2 + 80 / 4, 4 + 80 / 2]),
        ("..G", [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4]),
        ("..L", [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4]),
        (".L.", [1 + 2 / 2, 2, 4 + 80 / 2]),
        (".TR", [1 + 2 / 2 + 40 / 4, 2 + 40 / 2]),
        (".GR", [1 + 2 / 2, 2]),
        ("R.G", [None, 2 + 4 / 2, 4]),
    ],
)
def test_returns_at_every_kind_of_border_by_hand(script: str, returns: list[float | None]) -> None:
    arguments = _one_environment(script, [1, 2, 4], [10, 20, 40, 80])
    computed = n_step_returns(*arguments)[:, 0].tolist()
    advantages = gae(*arguments, 1.0)[:, 0].tolist()
    for row, expected in enumerate(returns):
        if expected is not None:
            assert computed[row] == pytest.approx(expected)
            assert advantages[row] == pytest.approx(expected - [10, 20, 40][row])


def test_gae_by_hand() -> None:
    # gamma = lambda = 1/2; delta = (1 + 20/2 - 10, 2 + 40/2 - 20, 4 + 80/2 - 40) = (1, 2, 4)
    advantages = gae(*_one_environment("...", [1, 2, 4], [10, 20, 40, 80]), 0.5)
    assert advantages[:, 0].tolist() == pytest.approx([1 + 2 / 4 + 4 / 16, 2 + 4 / 4, 4])


def test_truncation_and_game_over_on_the_last_row_differ_by_the_bootstrap() -> None:
    truncated = _one_environment("....T", [0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 8])
    over = _one_environment("....G", [0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 8])
    for arguments, last in ((truncated, 3 + 8 / 2), (over, 3.0)):
        expected = [last / 2**k for k in (4, 3, 2, 1, 0)]
        assert n_step_returns(*arguments)[:, 0].tolist() == pytest.approx(expected)
        assert gae(*arguments, 1.0)[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["T", "G"])
def test_rows_from_a_reset_on_never_leak_into_the_rows_before_it(kind: str) -> None:
    arguments = _one_environment(f".{kind}R..", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    reward, value, discount, trace = arguments
    other_reward, other_value = reward.clone(), value.clone()
    other_reward[2:] = 1e6
    other_value[3:] = -1e6
    if kind == "G":
        other_value[2] = 1e6  # the final observation of a game that is over is worth nothing
    before, after = slice(0, 2), slice(2, 5)
    for compute in (n_step_returns, lambda *arguments: gae(*arguments, LAMBDA)):
        first = compute(reward, value, discount, trace)
        second = compute(other_reward, other_value, discount, trace)
        assert torch.equal(first[before], second[before])
        assert not torch.equal(first[after], second[after])


@pytest.mark.parametrize("compute", [n_step_returns, lambda *arguments: gae(*arguments, LAMBDA)])
@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (T,), r"reward must be \[T, B\].*\(5,\)"),
        (0, (T, B, 1), r"reward must be \[T, B\].*\(5, 3, 1\)"),
        (1, (T, B), r"value must be .*\(6, 3\), got \(5, 3\)"),
        (1, (T + 1, 1), r"value must be .*\(6, 3\), got \(6, 1\)"),
        (2, (T, 1), r"discount must be .*\(5, 3\), got \(5, 1\)"),
        (2, (B, T), r"discount must be .*\(5, 3\), got \(3, 5\)"),
        (3, (T + 1, B), r"trace must be .*\(5, 3\), got \(6, 3\)"),
        (3, (), r"trace must be .*\(5, 3\), got \(\)"),
    ],
)
def test_wrong_shapes_are_refused_by_name(compute, position: int, shape: tuple[int, ...], message: str) -> None:
    arguments = [torch.zeros(T, B), torch.zeros(T + 1, B), torch.ones(T, B), torch.ones(T, B)]
    arguments[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        compute(*arguments)


def test_discounted_sums_against_a_hand_calculation() -> None:
    """Two environments, gamma 0.5; the first one's episode ends with row 1."""
    reward = torch.tensor([[1.0, 8.0], [2.0, 0.0], [4.0, 0.0]])
    trace = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    out = torch.empty(3, 2)
    carried = discounted_sums(reward, torch.tensor([10.0, 0.0]), trace, 0.5, out=out)
    assert out.tolist() == [[11.0, 8.0], [7.5, 4.0], [4.0, 2.0]]
    assert carried.tolist() == [2.0, 1.0]
