"""Action distributions and the heads that make them: against torch.distributions and by Monte Carlo."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from arcadia.config import LossConfig, ModelConfig
from arcadia.distributions import ActionDistribution, Categorical, DiagonalGaussian, SquashedGaussian, _log_slope
from arcadia.envs import EnvSpec
from arcadia.loss import Targets, actor_critic_loss
from arcadia.models import ActorCritic, build_model
from arcadia.types import ModelOutput, Rollout

N, D = 5, 3
SPEC = EnvSpec((4,), np.dtype(np.float32), D, is_continuous=True)


def _parameters(seed: int = 0, high: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=generator), 0.1 + high * torch.rand(N, D, generator=generator)


def _samples(distribution: ActionDistribution, count: int) -> Tensor:
    """Return [count, N, ...] draws."""
    generator = torch.Generator().manual_seed(1)
    return torch.stack([distribution.sample(generator) for _ in range(count)])


def _oracle(mean: Tensor, std: Tensor, is_squashed: bool) -> torch.distributions.Distribution:
    gaussian = Normal(mean.double(), std.double())
    return Independent(TransformedDistribution(gaussian, TanhTransform()) if is_squashed else gaussian, 1)


@pytest.mark.parametrize("is_squashed", [False, True])
def test_log_density_is_that_of_torch_distributions_summed_over_dimensions(is_squashed: bool) -> None:
    mean, std = _parameters()
    distribution = (SquashedGaussian if is_squashed else DiagonalGaussian)(mean, std)
    oracle = _oracle(mean, std, is_squashed)
    for action in _samples(distribution, 100):
        inside = (action.abs() < 0.999).all(-1) if is_squashed else torch.ones(N, dtype=torch.bool)
        expected = oracle.log_prob(action.double()).float()
        assert distribution.log_prob(action).shape == (N,)
        torch.testing.assert_close(distribution.log_prob(action)[inside], expected[inside], atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("is_squashed", [False, True])
def test_entropy_is_minus_the_mean_log_density_of_samples(is_squashed: bool) -> None:
    mean, std = _parameters()
    distribution = (SquashedGaussian if is_squashed else DiagonalGaussian)(mean, std)
    log_prob = torch.stack([distribution.log_prob(action) for action in _samples(distribution, 40_000)])
    error = 4 * log_prob.std(0) / math.sqrt(len(log_prob))
    assert ((distribution.entropy() + log_prob.mean(0)).abs() < error + 1e-3).all()


def test_entropy_of_a_squashed_gaussian_against_a_fine_integral() -> None:
    for mean, std in product((0.0, 1.0, -3.0), (0.05, 0.5, 1.0, 2.0)):
        x = torch.linspace(mean - 10 * std, mean + 10 * std, 200_001, dtype=torch.float64)
        density = Normal(mean, std).log_prob(x).exp()
        log_slope = 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
        expected = Normal(mean, std).entropy() + torch.trapezoid(density * log_slope, x)
        entropy = SquashedGaussian(torch.tensor([mean]), torch.tensor([std])).entropy()
        assert float(entropy) == pytest.approx(float(expected), abs=5e-3)


def test_samples_have_the_mean_and_the_spread_of_their_distribution() -> None:
    mean, std = _parameters()
    samples = _samples(DiagonalGaussian(mean, std), 20_000)
    assert samples.shape == (20_000, N, D)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(samples.std(0), std, atol=0, rtol=0.03)
    squashed = _samples(SquashedGaussian(mean, std), 20_000)
    torch.testing.assert_close(squashed.median(0).values, mean.tanh(), atol=0.05, rtol=0)
    assert squashed.abs().max() < 1


def test_squashed_actions_at_the_bounds_have_a_finite_density_and_gradient() -> None:
    mean, std = torch.full((1, 2), 30.0, requires_grad=True), torch.full((1, 2), 0.1, requires_grad=True)
    distribution = SquashedGaussian(mean, std)
    action = distribution.sample(torch.Generator()).detach()
    log_prob = distribution.log_prob(action)
    (log_prob + distribution.entropy()).sum().backward()
    assert action.abs().max() < 1
    assert log_prob.isfinite().all()
    assert mean.grad is not None
    assert std.grad is not None
    assert mean.grad.isfinite().all()
    assert std.grad.isfinite().all()


def test_what_lies_beyond_the_edges_of_a_squashed_gaussian_has_the_probability_of_its_tails() -> None:
    mean, std = torch.tensor([[5.0], [-6.0], [9.0]], dtype=torch.float64), torch.full((3, 1), 2.0, dtype=torch.float64)
    distribution = SquashedGaussian(mean, std)
    edge = float(np.arctanh(1 - 1e-6))
    gaussian = torch.distributions.Normal(mean, std)
    lower, upper = (
        distribution.log_prob(torch.full((3, 1), side * (1 - 1e-6), dtype=torch.float64)) for side in (-1, 1)
    )
    torch.testing.assert_close(lower.exp(), gaussian.cdf(torch.tensor(-edge))[:, 0])
    torch.testing.assert_close(upper.exp(), 1 - gaussian.cdf(torch.tensor(edge))[:, 0])
    before = torch.linspace(-edge, edge, 200_001, dtype=torch.float64)[1:-1].view(-1, 1, 1)
    density = (distribution.log_prob(before.tanh().expand(-1, 3, 1)) + _log_slope(before)[..., 0]).exp()
    total = torch.trapezoid(density, before[..., 0], dim=0) + lower.exp() + upper.exp()
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_the_score_of_a_saturated_squashed_gaussian_is_0_on_average() -> None:
    """Actions that are all the same cannot tell which mean is better."""
    mean, std = torch.full((20_000, 1), 9.0, requires_grad=True), torch.full((20_000, 1), 0.9, requires_grad=True)
    distribution = SquashedGaussian(mean, std)
    action = distribution.sample(torch.Generator().manual_seed(0)).detach()
    distribution.log_prob(action).sum().backward()
    assert mean.grad is not None
    assert std.grad is not None
    assert abs(float(mean.grad.mean())) < 0.02
    assert abs(float(std.grad.mean())) < 0.04


def test_squashed_actions_far_from_the_mean_have_a_finite_gradient() -> None:
    mean, std = torch.tensor([[3.0]], requires_grad=True), torch.full((1, 1), 1e-5, requires_grad=True)
    SquashedGaussian(mean, std).log_prob(torch.tensor([[0.5]])).sum().backward()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_categorical_agrees_with_torch_distributions() -> None:
    logits = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(0))
    distribution, oracle = Categorical(logits), torch.distributions.Categorical(logits=logits)
    action = distribution.sample(torch.Generator().manual_seed(0))
    assert action.shape == (2, N)
    torch.testing.assert_close(distribution.log_prob(action), oracle.log_prob(action))
    torch.testing.assert_close(distribution.entropy(), oracle.entropy())
    torch.testing.assert_close(distribution.probabilities(), oracle.probs)
    assert torch.equal(distribution.mode(), logits.argmax(-1))
    counts = torch.stack([distribution.sample(torch.Generator().manual_seed(s)) == 1 for s in range(2000)])
    torch.testing.assert_close(counts.float().mean(0), oracle.probs[..., 1], atol=0.05, rtol=0)


def test_categorical_actions_are_those_that_multinomial_draws_with_the_same_numbers() -> None:
    logits = 2 * torch.randn(50, 64, 6, generator=torch.Generator().manual_seed(0))
    actions = Categorical(logits).sample(torch.Generator().manual_seed(1))
    drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(actions.flatten(), drawn.squeeze(1))
    frequencies = torch.nn.functional.one_hot(actions, 6).float().mean((0, 1))
    torch.testing.assert_close(frequencies, logits.softmax(-1).mean((0, 1)), atol=0.015, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_said(bad: float) -> None:
    good, tainted = torch.ones(2, 2), torch.tensor([[1.0, 1.0], [1.0, bad]])
    for kind in (DiagonalGaussian, SquashedGaussian):
        assert kind(good, good).is_finite()
        assert not kind(tainted, good).is_finite()
        assert not kind(good, tainted).is_finite()
    assert Categorical(good).is_finite()
    assert not Categorical(tainted).is_finite()


# ---------------------------------------------------------------------------------------------------------------- heads


def _model(**settings: object) -> ActorCritic:
    return build_model(ModelConfig(torso="mlp", normalization="none", **settings), SPEC, seed=1)


def _policy(model: ActorCritic, observation: Tensor) -> DiagonalGaussian | SquashedGaussian:
    output = model(
        observation, torch.zeros(observation.shape[:2], dtype=torch.bool), torch.zeros(observation.shape[1], 0)
    )
    assert isinstance(output.policy, DiagonalGaussian | SquashedGaussian)
    assert output.policy.mean.shape == output.policy.std.shape == (*observation.shape[:2], D)
    return output.policy


@pytest.mark.parametrize(
    ("policy", "std", "mean", "initialization"),
    list(product(["gaussian", "squashed"], ["state", "free"], ["linear", "clamped_tanh"], ["orthogonal", "xavier"])),
)
def test_policy_starts_at_the_initial_std_in_the_middle_of_the_bounds(policy, std, mean, initialization) -> None:
    model = _model(policy=policy, action_std=std, action_mean=mean, initialization=initialization, initial_std=0.6)
    output = _policy(model, torch.randn(7, N, 4))
    assert isinstance(output, SquashedGaussian if policy == "squashed" else DiagonalGaussian)
    torch.testing.assert_close(output.std, torch.full_like(output.std, 0.6), atol=0.05, rtol=0)
    assert output.mean.abs().max() < 0.2


def test_std_depends_on_the_state_or_on_nothing() -> None:
    observation = torch.randn(7, N, 4)
    for kind in ("state", "free"):
        model = _model(action_std=kind)
        with torch.no_grad():
            for parameter in model.policy.parameters():
                parameter.mul_(50).add_(0.01)
        output = _policy(model, observation)
        assert (output.std.std((0, 1)) > 0.01).all() == (kind == "state")
        assert (output.std > 0).all()


def test_clamped_tanh_is_twice_the_tanh_between_the_bounds() -> None:
    linear, clamped = _model(action_mean="linear"), _model(action_mean="clamped_tanh")
    for model in (linear, clamped):
        with torch.no_grad():
            model.policy.linear.weight.mul_(100)
    observation = torch.randn(7, N, 4)
    mean = _policy(linear, observation).mean
    expected = torch.where(2 * mean.tanh() > 1, 1.0, torch.where(2 * mean.tanh() < -1, -1.0, 2 * mean.tanh()))
    torch.testing.assert_close(_policy(clamped, observation).mean, expected)
    assert (expected.abs() == 1).any()
    assert (expected.abs() < 1).any()


@pytest.mark.parametrize(
    ("before", "gradient", "expected"),
    [
        (0.3, 1.0, 2 * (1 - math.tanh(0.3) ** 2)),
        (-0.3, 1.0, 2 * (1 - math.tanh(0.3) ** 2)),
        (0.3, -1.0, -2 * (1 - math.tanh(0.3) ** 2)),
        (5.0, 1.0, 1.5),  # descent leads down, back to the bound, where 2 tanh has the slope 2 (1 - 0.5^2)
        (-5.0, -1.0, -1.5),
        (5.0, -1.0, 0.0),  # and here further away
        (-5.0, 1.0, 0.0),
    ],
)
def test_gradient_of_clamped_tanh_leads_back_from_beyond_the_bounds(before, gradient, expected) -> None:
    model = _model(action_mean="clamped_tanh")
    linear = model.policy.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(before)
    (gradient * _policy(model, torch.randn(1, 1, 4)).mean.sum()).backward()
    torch.testing.assert_close(linear.bias.grad, torch.full((D,), expected))


# ----------------------------------------------------------------------------------------------------------------- loss


def test_loss_of_a_gaussian_policy_against_a_hand_calculation() -> None:
    """One row: mean 0, std 1, action (1, 0, 0), advantage 2."""
    mean, std = torch.zeros(1, 1, D, requires_grad=True), torch.ones(1, 1, D)
    action = torch.tensor([[[1.0, 0.0, 0.0]]])
    policy = DiagonalGaussian(mean, std)
    false, ones = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1)
    rollout = Rollout(
        observation=torch.zeros(2, 1, 4),
        is_first=torch.zeros(2, 1, dtype=torch.bool),
        state=torch.zeros(1, 0),
        action=action,
        reward=ones,
        terminated=false,
        truncated=false,
        valid=~false,
        forced=false,
        log_prob=policy.log_prob(action).detach(),
        value=torch.zeros(2, 1),
    )
    output = ModelOutput(policy, torch.zeros(1, 1), torch.zeros(1, 0))
    config = LossConfig(value_coefficient=0.0, entropy_coefficient=0.1)
    loss = actor_critic_loss(output, rollout, Targets(2 * ones, ones), config)
    log_prob = -0.5 - 1.5 * math.log(2 * math.pi)
    entropy = 1.5 * (1 + math.log(2 * math.pi))
    assert loss.policy.item() == pytest.approx(-2 * log_prob, rel=1e-5)
    assert loss.entropy.item() == pytest.approx(entropy, rel=1e-5)
    loss.total.backward()
    assert mean.grad is not None
    assert mean.grad[0, 0].tolist() == pytest.approx([-2.0, 0.0, 0.0])  # d(-2 log p) / d mean = -2 (a - mean) / std^2
