"""The loss against hand numbers and slow loops; its gradient against formulas; and the targets it learns from."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcadia.config import LossConfig, ModelConfig
from arcadia.distributions import Categorical
from arcadia.envs import EnvSpec
from arcadia.gradients import Learner
from arcadia.loss import Targets, actor_critic_loss, compute_targets
from arcadia.models import FlatParameters, build_model
from arcadia.types import Loss, ModelOutput, Rollout

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
T, B, A = 5, 3, 7
NO_STATE = torch.zeros(B, 0)
# "." plays on, "L" loses a life, "G" is game over, "T" a time limit, "R" the reset row after G or T
SCRIPT = ("..L.G", "R.TR.", "GR..T")


def _rollout(seed: int = 0, script: tuple[str, ...] = SCRIPT) -> Rollout:
    """Return random numbers with the borders of one script per environment."""
    generator = torch.Generator().manual_seed(seed)
    letters = np.array([list(row) for row in script]).T  # [T, B]
    reset = torch.from_numpy(letters == "R")
    return Rollout(
        observation=torch.randn(T + 1, B, 4, generator=generator),
        is_first=torch.cat((torch.zeros(1, B, dtype=torch.bool), reset)),
        state=NO_STATE,
        action=torch.randint(A, (T, B), generator=generator),
        reward=torch.randn(T, B, generator=generator),
        terminated=torch.from_numpy(np.isin(letters, ["L", "G"])),
        truncated=torch.from_numpy(letters == "T"),
        valid=~reset,
        forced=torch.zeros(T, B, dtype=torch.bool),
        log_prob=-2 + 0.3 * torch.randn(T, B, generator=generator),
        value=torch.randn(T + 1, B, generator=generator),
    )


def _output(seed: int = 1) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)
    logits, value = torch.randn(T, B, A, generator=generator), torch.randn(T, B, generator=generator)
    return ModelOutput(Categorical(logits.requires_grad_()), value.requires_grad_(), NO_STATE)


def _targets(seed: int = 2) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    return Targets(torch.randn(T, B, generator=generator), torch.randn(T, B, generator=generator))


def _single(log_prob: float, ratio_advantage: float, clip_range: float | None) -> tuple[Tensor, Tensor]:
    """Return policy loss and clip fraction of one row with probability 1/2 now and exp(log_prob) then."""
    rollout = Rollout(
        observation=torch.zeros(2, 1, 1),
        is_first=torch.zeros(2, 1, dtype=torch.bool),
        state=torch.zeros(1, 0),
        action=torch.ones(1, 1, dtype=torch.int64),
        reward=torch.zeros(1, 1),
        terminated=torch.zeros(1, 1, dtype=torch.bool),
        truncated=torch.zeros(1, 1, dtype=torch.bool),
        valid=torch.ones(1, 1, dtype=torch.bool),
        forced=torch.zeros(1, 1, dtype=torch.bool),
        log_prob=torch.full((1, 1), log_prob),
        value=torch.zeros(2, 1),
    )
    output = ModelOutput(Categorical(torch.zeros(1, 1, 2)), torch.zeros(1, 1), torch.zeros(1, 0))
    targets = Targets(torch.full((1, 1), ratio_advantage), torch.zeros(1, 1))
    loss = actor_critic_loss(output, rollout, targets, LossConfig(clip_range=clip_range))
    return loss.policy, loss.clip_fraction


def test_loss_by_hand() -> None:
    # Two rows of one environment, two actions. Row 0: probabilities (3/4, 1/4); row 1: (1/2, 1/2).
    rollout = dataclasses.replace(
        _rollout(),
        action=torch.tensor([[0], [1]]),
        valid=torch.ones(2, 1, dtype=torch.bool),
        forced=torch.zeros(2, 1, dtype=torch.bool),
        log_prob=torch.zeros(2, 1),
    )
    logits = torch.tensor([[[math.log(3.0), 0.0]], [[5.0, 5.0]]])
    output = ModelOutput(Categorical(logits), torch.tensor([[0.5], [1.0]]), torch.zeros(1, 0))
    targets = Targets(advantage=torch.tensor([[2.0], [-1.0]]), return_=torch.tensor([[1.0], [3.0]]))
    policy = -2 * math.log(3 / 4) + math.log(1 / 2)
    value = 0.5**2 + 2**2
    entropy = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)) + math.log(2)
    for reduction, rows in (("mean", 2), ("sum_over_steps", 1)):
        config = LossConfig(reduction=reduction, value_coefficient=0.25, entropy_coefficient=0.1)
        loss = actor_critic_loss(output, rollout, targets, config)
        assert float(loss.policy) == pytest.approx(policy / rows)
        assert float(loss.value) == pytest.approx(value / rows)
        assert float(loss.entropy) == pytest.approx(entropy / rows)
        assert float(loss.total) == pytest.approx((policy + 0.25 * value - 0.1 * entropy) / rows)
        assert float(loss.clip_fraction) == 0


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_mean_is_over_valid_rows_and_sum_over_steps_averages_over_environments(clip_range: float | None) -> None:
    rollout, output, targets = _rollout(), _output(), _targets()
    policy = value = entropy = clipped = 0.0
    for t in range(T):
        for b in range(B):
            if not rollout.valid[t, b]:
                continue
            z = output.policy.logits[t, b].tolist()
            log_normalizer = math.log(sum(math.exp(logit) for logit in z))
            p = [math.exp(logit - log_normalizer) for logit in z]
            action, advantage = int(rollout.action[t, b]), float(targets.advantage[t, b])
            if clip_range is None:
                policy -= math.log(p[action]) * advantage
            else:
                ratio = p[action] / math.exp(float(rollout.log_prob[t, b]))
                bounded = min(max(ratio, 1 - clip_range), 1 + clip_range)
                policy -= min(ratio * advantage, bounded * advantage)
                clipped += abs(ratio - 1) > clip_range
            value += (float(targets.return_[t, b]) - float(output.value[t, b].detach())) ** 2
            entropy -= sum(x * math.log(x) for x in p)
    num_valid = int(rollout.valid.sum())
    assert num_valid == T * B - 3
    for reduction, rows in (("mean", num_valid), ("sum_over_steps", B)):
        config = LossConfig(reduction=reduction, clip_range=clip_range)
        loss = Loss(*(part.detach() for part in actor_critic_loss(output, rollout, targets, config)))
        assert float(loss.policy) == pytest.approx(policy / rows, abs=1e-5)
        assert float(loss.value) == pytest.approx(value / rows, abs=1e-5)
        assert float(loss.entropy) == pytest.approx(entropy / rows, abs=1e-5)
        assert float(loss.total) == pytest.approx((policy + 0.5 * value - 0.01 * entropy) / rows, abs=1e-5)
        assert float(loss.clip_fraction) == pytest.approx(clipped / num_valid)


@pytest.mark.parametrize("reduction", ["mean", "sum_over_steps"])
def test_gradient_equals_the_formula_and_is_zero_on_reset_rows(reduction: str) -> None:
    rollout, output, targets = _rollout(), _output(), _targets()
    config = LossConfig(reduction=reduction, value_coefficient=0.25, entropy_coefficient=0.1)
    actor_critic_loss(output, rollout, targets, config).total.backward()
    rows = int(rollout.valid.sum()) if reduction == "mean" else B
    p = output.policy.logits.detach().softmax(-1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    chosen = torch.nn.functional.one_hot(rollout.action, A)
    # d(-log p_a)/dz = p - 1_a;  dH/dz = -p (log p + H);  d(R - V)^2/dV = -2 (R - V)
    by_logits = (p - chosen) * targets.advantage.unsqueeze(-1) + 0.1 * p * (p.log() + entropy)
    by_value = -2 * 0.25 * (targets.return_ - output.value.detach())
    valid = rollout.valid
    torch.testing.assert_close(output.policy.logits.grad, by_logits * valid.unsqueeze(-1) / rows, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.value.grad, by_value * valid / rows, atol=1e-6, rtol=0)
    assert output.policy.logits.grad[~valid].count_nonzero() == 0
    assert output.value.grad[~valid].count_nonzero() == 0
    assert (output.policy.logits.grad[valid].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_gradient_flows_through_the_output_alone(clip_range: float | None) -> None:
    rollout, output, config = _rollout(), _output(), LossConfig(clip_range=clip_range)
    others = (rollout.value, rollout.log_prob, rollout.reward)
    for tensor in others:
        tensor.requires_grad_()
    loss = actor_critic_loss(output, rollout, compute_targets(rollout, config), config)
    loss.total.backward()
    assert output.policy.logits.grad is not None
    assert output.value.grad is not None
    assert [tensor.grad for tensor in others] == [None, None, None]


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum_over_steps"])
@pytest.mark.parametrize("advantage", ["n_step", "gae"])
def test_reset_rows_contribute_nothing(advantage: str, reduction: str, normalize_advantage: bool) -> None:
    config = LossConfig(
        advantage=advantage, reduction=reduction, normalize_advantage=normalize_advantage, clip_range=0.2
    )

    def learn(rollout: Rollout, output: ModelOutput) -> tuple[Tensor, Tensor, Tensor]:
        loss = actor_critic_loss(output, rollout, compute_targets(rollout, config), config)
        loss.total.backward()
        return torch.stack(loss).detach(), output.policy.logits.grad, output.value.grad

    first = learn(_rollout(), _output())
    rollout, output = _rollout(), _output()
    reset = ~rollout.valid
    rollout.reward[reset] = 1e3
    rollout.action[reset] = (rollout.action[reset] + 1) % A
    rollout.log_prob[reset] = -9.0
    with torch.no_grad():
        output.policy.logits[reset] = 5 * torch.randn(int(reset.sum()), A)
        output.value[reset] = -1e3
    second = learn(rollout, output)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)

    # ... while the same change of a valid row is seen
    rollout, output = _rollout(), _output()
    rollout.reward[0, 0] = 1e3
    assert not torch.equal(learn(rollout, output)[0], first[0])


def test_clipped_surrogate_has_the_policy_gradient_at_ratio_1() -> None:
    rollout, targets = _rollout(), _targets()
    plain, clipped = _output(), _output()
    log_probs = plain.policy.logits.detach().log_softmax(-1)
    rollout = dataclasses.replace(rollout, log_prob=log_probs.gather(-1, rollout.action[..., None])[..., 0])
    actor_critic_loss(plain, rollout, targets, LossConfig()).total.backward()
    loss = actor_critic_loss(clipped, rollout, targets, LossConfig(clip_range=0.2))
    loss.total.backward()
    torch.testing.assert_close(clipped.policy.logits.grad, plain.policy.logits.grad, atol=1e-6, rtol=0)
    assert plain.policy.logits.grad.abs().max() > 0.01
    assert float(loss.clip_fraction) == 0


@pytest.mark.parametrize(
    ("old_probability", "advantage", "surrogate", "is_clipped"),
    [
        (0.25, 3.0, 1.2 * 3, True),  # ratio 2: no more to gain than up to 1.2
        (0.25, -3.0, 2.0 * -3, True),  # ratio 2: the whole loss counts
        (0.8, 3.0, 0.625 * 3, True),  # ratio 0.625
        (0.8, -3.0, 0.8 * -3, True),
        (0.45, 3.0, 0.5 / 0.45 * 3, False),  # ratio 1.11: within the range
    ],
)
def test_clipped_surrogate_by_hand(
    old_probability: float, advantage: float, surrogate: float, is_clipped: bool
) -> None:
    policy, clip_fraction = _single(math.log(old_probability), advantage, 0.2)
    assert float(policy) == pytest.approx(-surrogate)
    assert float(clip_fraction) == is_clipped
    policy, clip_fraction = _single(math.log(old_probability), advantage, None)
    assert float(policy) == pytest.approx(math.log(2) * advantage)
    assert float(clip_fraction) == 0


@pytest.mark.parametrize("advantage", ["n_step", "gae"])
def test_normalized_advantages_have_mean_0_and_std_1_over_valid_rows(advantage: str) -> None:
    rollout = _rollout()
    rollout.reward[~rollout.valid] = 1e3
    plain = compute_targets(rollout, LossConfig(advantage=advantage))
    normalized = compute_targets(rollout, LossConfig(advantage=advantage, normalize_advantage=True))
    valid = normalized.advantage[rollout.valid].double()
    assert float(valid.mean()) == pytest.approx(0, abs=1e-6)
    assert float(valid.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(normalized.return_, plain.return_)
    assert valid.argsort().tolist() == plain.advantage[rollout.valid].argsort().tolist()


def test_a_single_advantage_stays_as_it_is() -> None:
    rollout = _rollout()
    rollout.valid[:] = False
    rollout.valid[1, 0] = True
    plain, normalized = (compute_targets(rollout, LossConfig(normalize_advantage=on)) for on in (False, True))
    assert float(plain.advantage[1, 0]) != 0
    assert torch.equal(normalized.advantage, plain.advantage)


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum_over_steps"])
def test_rollout_without_a_valid_row_teaches_nothing(reduction: str, normalize_advantage: bool) -> None:
    rollout, output = _rollout(), _output()
    rollout.valid[:] = False
    config = LossConfig(reduction=reduction, normalize_advantage=normalize_advantage, clip_range=0.2)
    loss = actor_critic_loss(output, rollout, compute_targets(rollout, config), config)
    loss.total.backward()
    assert [float(part.detach()) for part in loss] == [0.0] * 5
    assert output.policy.logits.grad.count_nonzero() == output.value.grad.count_nonzero() == 0


@pytest.mark.parametrize("advantage", ["n_step", "gae"])
def test_targets_follow_every_border_of_a_rollout(advantage: str) -> None:
    rollout = _rollout()
    config = LossConfig(gamma=0.9, advantage=advantage, gae_lambda=1.0)
    targets = compute_targets(rollout, config)
    for b in range(B):
        for t in range(T):
            if not rollout.valid[t, b]:
                continue
            ends = [i for i in range(t, T) if rollout.terminated[i, b] or rollout.truncated[i, b]] or [T - 1]
            expected = sum(0.9 ** (i - t) * float(rollout.reward[i, b]) for i in range(t, ends[0] + 1))
            if not rollout.terminated[ends[0], b]:
                expected += 0.9 ** (ends[0] + 1 - t) * float(rollout.value[ends[0] + 1, b])
            assert float(targets.return_[t, b]) == pytest.approx(expected, abs=1e-5)
            assert float(targets.advantage[t, b]) == pytest.approx(expected - float(rollout.value[t, b]), abs=1e-5)


def test_return_is_what_the_gae_advantage_adds_to_the_value() -> None:
    rollout = _rollout()
    targets = compute_targets(rollout, LossConfig(advantage="gae", gae_lambda=0.7))
    torch.testing.assert_close(targets.return_, targets.advantage + rollout.value[:-1])
    assert not torch.equal(targets.advantage, compute_targets(rollout, LossConfig(gae_lambda=0.6)).advantage)


def test_output_of_other_rows_than_the_rollouts_is_refused() -> None:
    output = ModelOutput(Categorical(torch.zeros(T + 1, B, A)), torch.zeros(T + 1, B), NO_STATE)
    with pytest.raises(ValueError, match=r"\(6, 3\).*\(5, 3\)"):
        actor_critic_loss(output, _rollout(), _targets(), LossConfig())


def test_gradient_is_scaled_down_to_the_global_norm_and_never_accumulates() -> None:
    model = build_model(ModelConfig(torso="mlp"), EnvSpec((4,), np.dtype(np.float32), A), seed=1)
    parameters = FlatParameters(model)
    rollout, targets = _rollout(), _targets()
    learner = Learner(model, parameters, LossConfig(max_grad_norm=1e6))
    first, loss, norm = learner.compute_gradient(rollout, targets)
    first = first.clone()
    assert not any(part.requires_grad for part in loss)
    assert float(first.norm()) == pytest.approx(norm)
    again, _, _ = learner.compute_gradient(rollout, targets)
    assert torch.equal(again, first)
    clipped, _, norm_before = Learner(model, parameters, LossConfig(max_grad_norm=norm / 4)).compute_gradient(
        rollout, targets
    )
    assert norm_before == pytest.approx(norm)
    torch.testing.assert_close(clipped, first / 4)


def test_the_learner_takes_another_entropy_coefficient_than_its_configs() -> None:
    model = build_model(ModelConfig(torso="mlp"), EnvSpec((4,), np.dtype(np.float32), A), seed=1)
    parameters = FlatParameters(model)
    rollout, targets = _rollout(), _targets()
    learner = Learner(model, parameters, LossConfig(max_grad_norm=1e6))
    own = learner.compute_gradient(rollout, targets)[0].clone()
    other = learner.compute_gradient(rollout, targets, 0.3)[0].clone()
    expected, loss, _ = Learner(
        model, parameters, LossConfig(max_grad_norm=1e6, entropy_coefficient=0.3)
    ).compute_gradient(rollout, targets)
    assert torch.equal(other, expected)
    assert not torch.equal(other, own)
    torch.testing.assert_close(loss.total, loss.policy + 0.5 * loss.value - 0.3 * loss.entropy)


@pytest.mark.parametrize("reduction", ["mean", "sum_over_steps"])
@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_forced_rows_teach_the_value_but_not_the_policy(reduction: str, clip_range: float | None) -> None:
    config = LossConfig(clip_range=clip_range, reduction=reduction, normalize_advantage=True)
    forced = torch.zeros(T, B, dtype=torch.bool)
    forced[1, 0] = forced[3, 2] = forced[0, 1] = True
    rollout = dataclasses.replace(_rollout(), forced=forced)
    changed = dataclasses.replace(rollout, action=torch.where(forced, (rollout.action + 1) % A, rollout.action))
    output, targets = _output(), compute_targets(rollout, config)
    loss = actor_critic_loss(output, rollout, targets, config)
    loss.total.backward()
    assert output.policy.logits.grad is not None
    assert output.value.grad is not None
    assert not output.policy.logits.grad[forced].any()
    assert output.policy.logits.grad[rollout.valid & ~forced].abs().sum(-1).all()
    assert output.value.grad[rollout.valid].all()
    assert actor_critic_loss(output, changed, targets, config).total == loss.total
    chosen = rollout.valid & ~forced
    expected = -(output.policy.logits.softmax(-1) * output.policy.logits.log_softmax(-1)).sum(-1)[chosen]
    scale = len(expected) if reduction == "mean" else B
    torch.testing.assert_close(loss.entropy, expected.sum() / scale)
    assert targets.advantage[chosen].mean().abs() < 1e-6
    assert targets.advantage[chosen].std(correction=0) == pytest.approx(1.0, abs=1e-5)


def test_forced_rows_stay_in_the_returns() -> None:
    config, rollout = LossConfig(), _rollout()
    forced = dataclasses.replace(rollout, forced=torch.ones(T, B, dtype=torch.bool))
    assert torch.equal(compute_targets(rollout, config).return_, compute_targets(forced, config).return_)
