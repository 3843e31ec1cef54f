"""Published scores of whole games, to put measured ones beside."""

# Mean scores of random play and of a human tester, no-op starts, 57 games by ROM name: Wang et al. 2016,
# arXiv:1511.06581, table 2.
RANDOM_AND_HUMAN = {
    "alien": (227.8, 7_127.7),
    "amidar": (5.8, 1_719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8_503.3),
    "asteroids": (719.1, 47_388.7),
    "atlantis": (12_850.0, 29_028.1),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2_360.0, 37_187.5),
    "beam_rider": (363.9, 16_926.5),
    "berzerk": (123.7, 2_630.4),
    "bowling": (23.1, 160.7),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "centipede": (2_090.9, 12_017.0),
    "chopper_command": (811.0, 7_387.8),
    "crazy_climber": (10_780.5, 35_829.4),
    "defender": (2_874.5, 18_688.9),
    "demon_attack": (152.1, 1_971.0),
    "double_dunk": (-18.6, -16.4),
    "enduro": (0.0, 860.5),
    "fishing_derby": (-91.7, -38.7),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4_334.7),
    "gopher": (257.6, 2_412.5),
    "gravitar": (173.0, 3_351.4),
    "hero": (1_027.0, 30_826.4),
    "ice_hockey": (-11.2, 0.9),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3_035.0),
    "krull": (1_598.0, 2_665.5),
    "kung_fu_master": (258.5, 22_736.3),
    "montezuma_revenge": (0.0, 4_753.3),
    "ms_pacman": (307.3, 6_951.6),
    "name_this_game": (2_292.3, 8_049.0),
    "phoenix": (761.4, 7_242.6),
    "pitfall": (-229.4, 6_463.7),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69_571.3),
    "qbert": (163.9, 13_455.0),
    "riverraid": (1_338.5, 17_118.0),
    "road_runner": (11.5, 7_845.0),
    "robotank": (2.2, 11.9),
    "seaquest": (68.4, 42_054.7),
    "skiing": (-17_098.1, -4_336.9),
    "solaris": (1_236.3, 12_326.7),
    "space_invaders": (148.0, 1_668.7),
    "star_gunner": (664.0, 10_250.0),
    "surround": (-10.0, 6.5),
    "tennis": (-23.8, -8.3),
    "time_pilot": (3_568.0, 5_229.2),
    "tutankham": (11.4, 167.6),
    "up_n_down": (533.4, 11_693.2),
    "venture": (0.0, 1_187.5),
    "video_pinball": (16_256.9, 17_667.9),
    "wizard_of_wor": (563.5, 4_756.5),
    "yars_revenge": (3_092.9, 54_576.9),
    "zaxxon": (32.5, 9_173.3),
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
