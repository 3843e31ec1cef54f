"""Stable-Baselines3's A2C on a control task: the curve of its training and the score of its final policy.

pip install stable-baselines3 "gymnasium[mujoco]" && python benchmarks/sb3_a2c.py HalfCheetah-v5 3000000 curve.csv

Settings are those that RL Baselines3 Zoo tuned for A2C on HalfCheetahBulletEnv-v0, without its time feature.
"""

import csv
import sys
import time
from pathlib import Path

import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

NUM_ENVS = 4
CURVE_STEPS = 50_000  # env_steps between two rows of the curve


def main(env_id: str, total_steps: int, path: Path) -> None:
    """Train, write the curve (env_steps, minutes, mean return of the last 100 episodes), play 100 episodes."""
    torch.set_num_threads(1)
    env = VecNormalize(make_vec_env(env_id, NUM_ENVS, seed=1))
    model = A2C(
        "MlpPolicy",
        env,
        learning_rate=lambda remaining: 0.00096 * remaining,
        n_steps=8,
        gae_lambda=0.9,
        gamma=0.99,
        ent_coef=0.0,
        vf_coef=0.4,
        max_grad_norm=0.5,
        use_sde=True,
        policy_kwargs={"log_std_init": -2, "ortho_init": False},
        seed=1,
        device="cpu",
    )
    started = time.perf_counter()
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("env_steps", "minutes", "mean_100"))

        class Curve(BaseCallback):
            def _on_step(self) -> bool:
                episodes = self.model.ep_info_buffer
                if self.num_timesteps % CURVE_STEPS < NUM_ENVS and episodes:
                    mean = sum(episode["r"] for episode in episodes) / len(episodes)
                    rows.writerow((self.num_timesteps, f"{(time.perf_counter() - started) / 60:.2f}", f"{mean:.1f}"))
                    file.flush()
                return True

        model.learn(total_steps, callback=Curve())
    print(f"{total_steps:,} env_steps in {(time.perf_counter() - started) / 60:.1f} minutes")
    env.training = env.norm_reward = False
    for is_greedy in (False, True):
        mean, std = evaluate_policy(model, env, n_eval_episodes=100, deterministic=is_greedy)
        print(f"100 {'greedy' if is_greedy else 'sampled'} episodes: mean {mean:.1f}, std {std:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
