"""Published A3C systems on Atari as recipes.

Where a source is silent: the code it says it built on, then the A3C paper.
"""

from dataclasses import replace

from arcadia.config import EnvConfig, LossConfig, ModelConfig, OptimizerConfig, RuntimeConfig, TrainConfig
from arcadia.recipes.recipe import Recipe

A3C_LOSS = LossConfig(
    gamma=0.99,
    advantage="n_step",
    value_coefficient=0.5,
    entropy_coefficient=0.01,
    reduction="sum_over_steps",
    max_grad_norm=40.0,
)
BATCHED = (
    "one worker per core holds several environments, so that workers x environments is about the source's count of "
    "workers; its loss is summed over T and averaged over them: fewer, larger updates"
)
TIME_LIMITS = "time limits bootstrap from the value of the last state instead of counting as the end of the game"
_ORTHOGONAL = "layers start orthogonal: the source is silent"

_A3C = TrainConfig(
    recipe="a3c-ff",
    env=EnvConfig(num_envs=64),
    model=ModelConfig(torso="a3c"),
    loss=A3C_LOSS,
    optimizer=OptimizerConfig(optimizer="rmsprop", lr=5.6e-3, schedule="linear", epsilon=0.1, alpha=0.99),
    runtime=RuntimeConfig(num_steps=(5,), total_steps=80_000_000),
)
_A3C_SOURCE = (
    "Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783; learning rate, epsilon "
    "and gradient norm as re-implementers relay them from the authors"
)
_A3C_PROTOCOL = "16 workers, 320 million frames or more, human starts"
_A3C_DEVIATIONS = (
    "one worker per core with 64 environments each, instead of 16 workers with one: fewer, larger updates",
    "the learning rate is 8 times the relayed 7e-4, for an update averages over 64 environments; the source samples it "
    "from LogUniform(1e-4, 1e-2)",
    "pixels are normalised by running statistics instead of divided by 255: so Pong rose from -20 to -9 in 3.9M "
    "env_steps; divided by 255 it did not at 2e-2 in 4.4M, and 5.6e-3 was not tried for long",
    "no-op starts instead of human starts, whose recordings are not published",
)

_WRAPPERS = TrainConfig(
    recipe="wrappers-12",
    env=EnvConfig(total_envs=12, frame_stack=1, noop_max=30, fire_on_reset=False),
    model=ModelConfig(torso="a3c", normalization="scale"),
    loss=replace(A3C_LOSS, max_grad_norm=50.0),
    optimizer=OptimizerConfig(optimizer="adam", lr=1e-4, schedule="constant", epsilon=1e-8),
    runtime=RuntimeConfig(num_steps=(20,), total_steps=5_000_000),
)
_WRAPPERS_SOURCE = "an A3C on the Stable-Baselines Atari wrappers, 12 processes on an 8-core laptop"
_WRAPPERS_PROTOCOL = "5 million steps; training and evaluation curves per game"
_WRAPPERS_GAMES = tuple(
    f"{game}NoFrameskip-v4" for game in ("Pong", "Breakout", "SpaceInvaders", "Boxing", "IceHockey")
)
_WRAPPERS_DEVIATIONS = (
    BATCHED,
    TIME_LIMITS,
    _ORTHOGONAL,
    "the network is the A3C paper's (convolutions 16 8x8/4 and 32 4x4/2, 256 units): the source shows a picture "
    "without sizes",
    "gradient norm 50: the source is silent, pytorch-a3c, which it built on, clips there",
    "the value coefficient 0.5 weighs the squared error itself: the source does not say whether it halves it",
    "workers draw from independent streams of one seed instead of the seeds 1 + rank",
    "a lost life goes on without a no-op step in between: nothing depends on it",
    "grey before the maximum of two frames, not after: ale-py's vector environment does so too",
)

_GRU = TrainConfig(
    recipe="gru-160",
    env=EnvConfig(total_envs=8, frame_size=(160, 160), frame_stack=1, color=True, crop="rows", crop_rows=(35, 195)),
    model=ModelConfig(torso="narrow_8", core="gru", core_size=256),
    loss=A3C_LOSS,
    optimizer=OptimizerConfig(optimizer="adam", lr=4e-4, schedule="constant", epsilon=1e-8),
    runtime=RuntimeConfig(num_steps=(30,), total_steps=20_000_000),
)
_GRU_SOURCE = "an A3C with a GRU on cropped colour frames, 8 processes and a validator"
_GRU_PROTOCOL = "the validator plays greedily with the newest parameters, an episode at a time"
_GRU_DEVIATIONS = (
    BATCHED,
    TIME_LIMITS,
    _ORTHOGONAL,
    "chosen by us, because the source does not give them: the ids, kernels (8x8/4, 4x4/2, 3x3/2), a third convolution "
    "of 32 channels, 256 units before and in the GRU, learning rate 4e-4, gamma 0.99, entropy 0.01, value coefficient "
    "0.5, gradient norm 40",
    "pixels are normalised by running statistics instead of divided by 255, with which Pong was not learned in 520,000 "
    "env_steps",
    "lost lives end the return and rewards are clipped to their sign, as in the A3C paper: the source is silent",
    "no-op starts, and FIRE at a game's start: the source is silent",
    "evaluation plays whole batches of games, greedy and sampled, for a mean with an interval",
)

_TOWERS = TrainConfig(
    recipe="towers-24",
    env=EnvConfig(
        total_envs=24,
        noop_max=1,
        fire_on_reset=False,
        forced_actions=(1,),
        forced_start_max=30,
        drop_noop=True,
        terminal_on_life_loss=False,
        refill_on_life_loss=True,
    ),
    model=ModelConfig(torso="nature_2", towers="separate"),
    loss=replace(A3C_LOSS, value_coefficient=0.25),
    optimizer=OptimizerConfig(optimizer="adam", lr=1e-3, schedule="log_episodes", epsilon=1e-8),
    runtime=RuntimeConfig(num_steps=(20,), total_steps=100_000_000, total_episodes=10_000, checkpoint_seconds=600.0),
)

_A3G_GAMES = ("SpaceInvaders", "Breakout", "Pong", "BeamRider", "MsPacman", "Seaquest", "Asteroids", "Boxing", "Qbert")
_A3G = TrainConfig(
    recipe="a3g-lstm",
    env=EnvConfig(
        total_envs=32,
        frame_size=(80, 80),
        frame_stack=1,
        crop="game",
        fire_on_reset=False,
        forced_actions=(1, 2),
        max_episode_steps=10_000,
    ),
    model=ModelConfig(
        torso="max_pool",
        core="lstm",
        core_size=512,
        initialization="xavier",
        reset_on_life_loss=True,
        normalization="scalar",
    ),
    loss=replace(A3C_LOSS, advantage="gae", gae_lambda=1.0, value_coefficient=0.25),
    optimizer=OptimizerConfig(optimizer="adam", lr=1e-4, schedule="constant", epsilon=1e-3),
    runtime=RuntimeConfig(num_steps=(20,), total_steps=80_000_000),
)

ATARI: dict[str, Recipe] = {
    "a3c-ff": Recipe(
        description="A3C feed-forward, as published",
        source=_A3C_SOURCE,
        protocol=_A3C_PROTOCOL,
        reported="Pong 5.6, Breakout 682, SpaceInvaders 15,731, BeamRider 22,708",
        config=_A3C,
        deviations=_A3C_DEVIATIONS,
    ),
    "a3c-lstm": Recipe(
        description="A3C with an LSTM of 256 units, as published",
        source=_A3C_SOURCE,
        protocol=_A3C_PROTOCOL,
        reported="Pong 10.7, Breakout 767, SpaceInvaders 23,846, BeamRider 24,622",
        config=replace(_A3C, recipe="a3c-lstm", model=replace(_A3C.model, core="lstm", core_size=256)),
        deviations=_A3C_DEVIATIONS,
    ),
    "wrappers-12": Recipe(
        description="Stable-Baselines wrappers, one grey frame, the A3C paper's network",
        source=_WRAPPERS_SOURCE,
        protocol=_WRAPPERS_PROTOCOL,
        reported="only Pong was stable",
        games=_WRAPPERS_GAMES,
        config=_WRAPPERS,
        deviations=_WRAPPERS_DEVIATIONS,
    ),
    "wrappers-12-stack4-bn": Recipe(
        description="wrappers-12 with four frames, batch normalisation and a wider second convolution",
        source=_WRAPPERS_SOURCE,
        protocol=_WRAPPERS_PROTOCOL,
        reported="Breakout: no better than wrappers-12",
        games=("BreakoutNoFrameskip-v4",),
        config=replace(
            _WRAPPERS,
            recipe="wrappers-12-stack4-bn",
            env=replace(_WRAPPERS.env, frame_stack=4),
            model=replace(_WRAPPERS.model, torso="a3c_bn"),
        ),
        deviations=(
            *_WRAPPERS_DEVIATIONS,
            "batch normalisation uses running statistics shared by all workers, in acting and learning alike: by "
            "batches, the policy that learns would not be the one that acted",
        ),
    ),
    "gru-160": Recipe(
        description="160x160 colour frames, a small network and a GRU",
        source=_GRU_SOURCE,
        protocol=_GRU_PROTOCOL,
        reported="Pong: hits the ball after 1 hour, scores after 2, always wins after 3 to 4",
        games=("Pong-v4", "SpaceInvaders-v4"),
        config=_GRU,
        deviations=_GRU_DEVIATIONS,
    ),
    "gru-160-stack4": Recipe(
        description="gru-160 with the last four frames",
        source=_GRU_SOURCE,
        protocol=_GRU_PROTOCOL,
        reported="compared with gru-160, no figure",
        games=("Pong-v4", "SpaceInvaders-v4"),
        config=replace(
            _GRU,
            recipe="gru-160-stack4",
            env=replace(_GRU.env, frame_stack=4),
            model=replace(_GRU.model, torso="narrow_16"),
        ),
        deviations=_GRU_DEVIATIONS,
    ),
    "towers-24": Recipe(
        description="separate actor and critic networks, NOOP removed, forced FIRE",
        source="an A3C with separate actor and critic networks, 24 threads",
        protocol="10,000 episodes of all threads together; reward, duration and mean maximum probability of each",
        reported="Pong never learned, BeamRider failed, SpaceInvaders flat after 50 episodes, Assault saturated early, "
        "Breakout improved until 4,000 episodes",
        games=("BreakoutDeterministic-v4", "SpaceInvaders-v0", "Pong-v0", "Assault-v0", "BeamRider-v0"),
        config=_TOWERS,
        deviations=(
            BATCHED,
            TIME_LIMITS,
            _ORTHOGONAL,
            "pixels are normalised by running statistics instead of divided by 255: at a learning rate of 1e-3 the "
            "ReLU units died in the first updates, and Pong was not learned",
            "frames of BreakoutDeterministic-v4 are the maximum of the last 2, as ale-py's vector environment takes it",
            "a forced FIRE stays in the returns but is masked from policy and entropy losses: it is not the policy's "
            "action",
            "the learning rate falls with the episodes of all workers: the source evaluated its schedule once",
            "the bootstrap is the value of the next state: the source took that of the last state acted on",
            "lives are the emulator's: the source assumed five in every game",
            "no action at random where the policy is not finite: the gradient is skipped, counted and reported",
        ),
    ),
    "a3g-lstm": Recipe(
        description="A3C-LSTM of rl_a3c_pytorch (A3G on a CPU): cropped grey frame, max-pooling, LSTM of 512",
        source="rl_a3c_pytorch",
        protocol="32 workers; means of 100 episodes of at most 10,000 steps with the greedy policy, best single games "
        "in brackets",
        reported="SpaceInvaders-v0 5,808 +- 337 (13,380), -v3 6,945 (20,440), Deterministic-v3 79,060 +- 5,827 "
        "(167,330, ended by the time limit); Breakout-v0 739 +- 18 (864), -v3 860 +- 2 (864); Pong-v0 20.96, "
        "Deterministic-v3 21.00; BeamRider-v0 8,441 (13,130); MsPacman-v0 6,323 (10,181); Seaquest-v0 54,204 "
        "(88,840), -v4 999,999",
        games=tuple(
            game + form for game in _A3G_GAMES for form in ("-v0", "-v3", "Deterministic-v3", "NoFrameskip-v4")
        ),
        config=_A3G,
        deviations=(
            BATCHED,
            TIME_LIMITS,
            "the maximum over the last 2 frames instead of 3, as ale-py's vector environment takes it, and none for "
            "ids with a random frame skip",
            "the normaliser's averages are shared by all workers, held for a rollout and floored at a standard "
            "deviation of 5 of 255, and its output is clipped at 20: acting and learning see the same inputs",
            "with --gae-lambda below 1 (the charts' 0.92) the critic learns lambda-returns, not n-step returns",
            "forced actions at a start are masked from policy and entropy losses: they are not the policy's",
            "gradients are clipped to norm 40, as in the A3C paper: without a clip one bad rollout ruins a run",
            "the best model is chosen by the mean of several sampled episodes: the source kept one lucky game",
        ),
    ),
}
