"""Published scores of whole games, to put measured ones beside."""

# Mean scores of a random agent and of a human tester: Mnih et al. 2015, Nature 518, 529-533, extended data table 2.
RANDOM_AND_HUMAN = {
    "pong": (-20.7, 14.6),
    "breakout": (1.7, 30.5),
    "space_invaders": (148.0, 1_669.0),
    "boxing": (0.1, 12.1),
    "ice_hockey": (-11.2, 0.9),
    "beam_rider": (364.0, 16_927.0),
    "assault": (222.0, 742.0),
    "seaquest": (68.0, 42_055.0),
    "ms_pacman": (307.0, 6_952.0),
}

_SOURCES = (
    "A3C feed-forward, 320M frames or more, human starts (Mnih et al. 2016, arXiv:1602.01783)",
    "A3C with LSTM, 320M frames or more, human starts (Mnih et al. 2016, arXiv:1602.01783)",
    "A2C, 40M frames (Schulman et al. 2017, arXiv:1707.06347)",
    "ACER, 40M frames (Schulman et al. 2017, arXiv:1707.06347)",
    "PPO, 40M frames (Schulman et al. 2017, arXiv:1707.06347)",
)
_SCORES = {
    "pong": (5.6, 10.7, 19.7, 20.7, 20.7),
    "breakout": (682.0, 767.0, 303.0, 456.0, 275.0),
    "space_invaders": (15_731.0, 23_846.0, 745.0, 1_214.0, 943.0),
    "boxing": (59.8, 37.3, 17.7, 98.9, 94.6),
    "ice_hockey": (-2.8, -1.7, -6.4, -5.9, -4.2),
    "beam_rider": (22_708.0, 24_622.0, 3_032.0, 3_863.0, 1_590.0),
    "assault": (5_475.0, 14_498.0, 1_563.0, 4_654.0, 4_972.0),
    "seaquest": (2_355.0, 1_326.0, 1_714.0, 1_740.0, 1_205.0),
    "ms_pacman": (654.0, 851.0, 1_627.0, 2_719.0, 2_097.0),
}


def published_scores(game: str | None) -> dict[str, float]:
    """Return source -> published mean score of an Atari game, by its ROM name; empty where none is known."""
    return dict(zip(_SOURCES, _SCORES[game], strict=True)) if game in _SCORES else {}


def human_normalized(game: str | None, score: float) -> float | None:
    """Return the score with random play at 0 and the human tester at 1; None where those are not known."""
    if game not in RANDOM_AND_HUMAN:
        return None
    random, human = RANDOM_AND_HUMAN[game]
    return (score - random) / (human - random)
