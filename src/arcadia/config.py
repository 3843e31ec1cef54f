"""Every setting of a training run, as frozen dataclasses: the command line, the recipes and config.json."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Schedule = Literal["constant", "linear", "log_episodes"]
EVALUATION_SEED = 1_000_000  # of evaluations of a finished run, by default; training uses no such seed


@dataclass(frozen=True)
class EnvConfig:
    env: str = ""
    """Environment id: pong, PongNoFrameskip-v4, ALE/Pong-v5, CartPole-v1, ..."""
    num_envs: int | None = None
    """Environments per worker (B). Default: total_envs split over the workers."""
    total_envs: int = 16
    """Environments of all workers together, where num_envs is not given."""
    frame_size: tuple[int, int] = (84, 84)
    """Atari: height and width of a frame, pixels."""
    frame_stack: int = 4
    """Newest frames stacked in one Atari observation."""
    color: bool = False
    """Atari: RGB frames instead of grey ones."""
    crop: Literal["none", "rows", "game"] = "none"
    """Atari: rows of the picture that are kept: all, crop_rows, or the game's playfield by a table."""
    crop_rows: tuple[int, int] = (0, 210)
    """Atari: first row kept and first row dropped again, of the 210 of most games (crop rows)."""
    noop_max: int = 30
    """Atari: a game starts with fewer than this many random no-ops (frames; decisions where the skip is random)."""
    fire_on_reset: bool = True
    """Atari: press FIRE at a game's start, in games that have the button."""
    forced_actions: tuple[int, ...] = ()
    """Atari: actions of the game (1 is FIRE) played in place of the agent's at the start of each game and after each
    lost life, in games that have FIRE. The policy does not learn from these steps."""
    forced_start_max: int = 1
    """Atari: at a game's start the first forced action is repeated 1 to this many times."""
    drop_noop: bool = False
    """Atari: take NOOP out of the agent's actions."""
    terminal_on_life_loss: bool = True
    """Atari: a lost life ends the return (never the game)."""
    refill_on_life_loss: bool = False
    """Atari: after a lost life the newest frame fills the whole stack."""
    max_episode_steps: int | None = None
    """Time limit in decisions; of gymnasium's environments at most their own. Default: the one that the id promises."""
    stagger: bool = False
    """Gymnasium: in training, environment b of B is truncated once, after b / B of its time limit, so that a rollout
    sees games at every stage. The cut games teach, but are no scores."""
    clip_rewards: bool = True
    """Learn from the sign of the reward. Scores stay raw."""
    reward_scale: float = 1.0
    """Learn from the reward times this."""
    reward_floor: float | None = None
    """Learn from no reward below this (after reward_scale)."""


@dataclass(frozen=True)
class ModelConfig:
    torso: Literal["a3c", "a3c_bn", "nature", "nature_2", "narrow_8", "narrow_16", "max_pool", "mlp", "custom"] = "a3c"
    """Convolutions of the A3C paper (a3c_bn: wider, batch-normalised), of the Nature DQN paper (nature_2: its first
    two), of the published systems (narrow_8, narrow_16, max_pool), a multi-layer perceptron, or the caller's own
    (make_torso, from Python)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the MLP torso's layers."""
    activation: Literal["tanh", "relu", "leaky_relu"] = "tanh"
    """Activation after each layer of the MLP torso."""
    core: Literal["none", "lstm", "gru"] = "none"
    """Recurrent core between torso and heads."""
    core_size: int = 256
    """Width of the recurrent core."""
    towers: Literal["shared", "separate"] = "shared"
    """Torso and core: one for actor and critic, or one each (and gradients clipped for each by itself)."""
    policy: Literal["gaussian", "squashed"] = "gaussian"
    """Continuous actions: a diagonal Gaussian, clipped to the action's bounds by the environment, or its tanh."""
    action_mean: Literal["linear", "clamped_tanh"] = "linear"
    """Mean of a Gaussian policy: a linear layer, or 2 tanh of it clamped to [-1, 1]."""
    action_std: Literal["state", "free"] = "free"
    """Standard deviation of a Gaussian policy: softplus of a linear layer, or one learned number per dimension."""
    initial_std: float = 1.0
    """Standard deviation of a Gaussian policy at the start (the action's bounds are -1 and 1)."""
    initialization: Literal["orthogonal", "xavier"] = "orthogonal"
    """Initial parameters: orthogonal, or as in rl_a3c_pytorch."""
    reset_on_life_loss: bool = False
    """The recurrent state starts anew after a lost life that ends the return, not only with a game."""
    normalization: Literal["none", "scale", "per_element", "scalar"] = "per_element"
    """Model input: as it is, divided by 255 (images of bytes), or (x - mean) / std: per pixel or dimension, or one
    decaying mean and std for all of them."""
    normalization_steps: int | None = None
    """env_steps after which the mean and std of per_element freeze. Default: never."""
    normalize_rewards: bool = False
    """Learn from rewards divided by the running standard deviation of the discounted return."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the torso. auto: the faster one here, by a short measurement, on GPUs bfloat16 (always float32 where
    runs are reproducible: runtime serial, or one worker)."""

    @property
    def is_convolutional(self) -> bool:
        """True where the torso is one of ours for images."""
        return self.torso not in ("mlp", "custom")


@dataclass(frozen=True)
class LossConfig:
    gamma: float = 0.99
    """Discount per env_step."""
    advantage: Literal["n_step", "gae"] = "gae"
    """Advantage estimator: n-step return minus value, or generalized advantage estimation."""
    gae_lambda: float = 0.95
    """Trace decay of gae."""
    normalize_advantage: bool = False
    """Shift and scale each rollout's advantages to mean 0, standard deviation 1."""
    value_coefficient: float = 0.5
    """Weight of the squared error of the value."""
    entropy_coefficient: float = 0.01
    """Weight of the policy's entropy (nats), at the start."""
    entropy_schedule: Schedule = "constant"
    """Entropy coefficient: constant, linear in env_steps to 0, or over log10(10 + episodes / 100)."""
    entropy_horizon: float = 1.0
    """Share of total_steps after which a linear entropy coefficient is 0."""
    reduction: Literal["mean", "sum_over_steps"] = "mean"
    """Loss: mean over valid rows, or sum over a rollout's steps and mean over environments."""
    max_grad_norm: float = 0.5
    """The gradient is scaled down to this global norm (actor and critic by themselves where towers are separate)."""
    num_epochs: int = 1
    """Passes over each rollout."""
    num_minibatches: int = 1
    """Parts, by environment, that each pass is split into (at most num_envs); each part is one update."""
    clip_range: float | None = None
    """Clip of the probability ratio (as in PPO); needed for more than one pass."""


@dataclass(frozen=True)
class OptimizerConfig:
    optimizer: Literal["rmsprop", "adam", "amsgrad"] = "adam"
    """rmsprop is the A3C paper's: epsilon inside the root, no momentum."""
    lr: float = 5e-4
    """Learning rate at the start."""
    schedule: Schedule = "linear"
    """Learning rate: constant, linear in env_steps to 0 at total_steps, or over log10(10 + episodes / 100)."""
    epsilon: float = 1e-5
    """Term that bounds the step where gradients vanish."""
    beta1: float = 0.9
    """Adam, AMSGrad: decay of the gradient's mean."""
    beta2: float = 0.999
    """Adam, AMSGrad: decay of the gradient's mean square."""
    alpha: float = 0.99
    """RMSProp: decay of the gradient's mean square."""
    shared_statistics: bool = True
    """All workers share the optimizer's statistics, or each keeps its own."""


@dataclass(frozen=True)
class RuntimeConfig:
    total_steps: int = 10_000_000
    """Stop after this many env_steps (decisions of all workers)."""
    total_minutes: float | None = None
    """Stop after this many minutes."""
    total_episodes: int | None = None
    """Stop after this many episodes of all workers."""
    stop_score: float | None = None
    """Stop when the mean return of the last 100 training episodes reaches this."""
    seed: int = 1
    """Seed of every random draw."""
    run_dir: str | None = None
    """Where the run is written. Default: runs/<env>-<recipe>-<seed>-<time>."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Log to Weights & Biases too: what TensorBoard shows, under the same names."""
    runtime: Literal["hogwild", "serial"] = "hogwild"
    """Workers in processes with lock-free updates, or one reproducible process."""
    num_workers: int | None = None
    """Workers. Default: hogwild one per core (at most total_envs), serial one."""
    gpu_ids: tuple[int, ...] = ()
    """GPUs that hold the workers' models, in turn; the shared parameters stay on the CPU. Default: see device."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the workers' models are, unless gpu_ids says so: on the CPU, or on all GPUs that there are, in turn."""
    num_steps: tuple[int, ...] = (20,)
    """Decisions per environment in each rollout (T). Of several, worker k takes the k-th, cyclically."""
    eval_episodes: int = 5
    """Episodes in each evaluation during training, greedy and sampled alike; 0 switches it off."""
    eval_cpu_share: float = 0.02
    """Share of the machine's processors that the evaluator may use (hogwild)."""
    eval_updates: int = 2_000
    """Updates between evaluations (serial)."""
    video_updates: int | None = None
    """Updates between videos of a sampled game in RUN/videos/. They are made in the evaluator's share of time, at
    most one between two evaluations."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints; the first is written after 10 s at most."""
    max_restarts: int = 100
    """How often a worker or the evaluator that died or hung is started again, each of them (hogwild)."""
    heartbeat_seconds: float = 60.0
    """A worker or evaluator that has not moved an environment for so long counts as hung (hogwild)."""


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = "atari"
    """Recipe that the other settings start from: see `arcadia recipes`."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def envs_per_worker(self) -> int:
        """B: num_envs, or what comes nearest to total_envs over all workers."""
        return self.env.num_envs or max(1, round(self.env.total_envs / (self.runtime.num_workers or 1)))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready nested dictionaries."""
        return dataclasses.asdict(self)
