"""Where 24 Atari games keep their state: the RAM addresses of AtariARI's state variables.

Source: Anand et al. (2019), "Unsupervised State Representation Learning in Atari",
arXiv:1906.08226, and the annotations published with it (github.com/mila-iqia/atari-representation-learning,
``atariari/benchmark/ram_annotations.py``). Variables are grouped as there: by the words in their names.
Four of Battlezone's angles and a colour fall into no category there and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

# What AtariARI calls them, in its order.
CATEGORIES = {
    "agent": "agent localization",
    "small_object": "small object localization",
    "other": "other localization",
    "status": "score, clock, lives, display",
    "misc": "miscellaneous",
}

_GAMES: dict[str, dict[str, dict[str, int | Iterable[int]]]] = {
    "asteroids": {
        "agent": {"player_x": 73, "player_y": 74},
        "small_object": {
            "player_missile_x1": 83,
            "player_missile_x2": 84,
            "player_missile_y1": 86,
            "player_missile_y2": 87,
        },
        "other": {
            "enemy_asteroids_y": (*range(3, 10), *range(12, 20)),
            "enemy_asteroids_x": (*range(21, 28), *range(30, 38)),
        },
        "status": {"num_lives_direction": 60, "player_score_high": 61, "player_score_low": 62},
        "misc": {"num_lives_direction": 60, "player_missile1_direction": 89, "player_missile2_direction": 90},
    },
    "battlezone": {
        "small_object": {"missile_y": 105},
        "other": {"blue_tank_size_y": 47, "blue_tank_x": 48, "blue_tank2_size_y": 53, "blue_tank2_x": 54},
        "status": {"num_lives": 58, "score": 29},
        "misc": {"blue_tank_facing_direction": 46, "blue_tank2_facing_direction": 52},
    },
    "berzerk": {
        "agent": {"player_x": 19, "player_y": 11},
        "small_object": {
            "player_missile_x": 22,
            "player_missile_y": 23,
            "robot_missile_x": 29,
            "robot_missile_y": 30,
        },
        "other": {
            "enemy_evilOtto_x": 46,
            "enemy_evilOtto_y": 89,
            "enemy_robots_x": range(65, 73),
            "enemy_robots_y": range(56, 65),
        },
        "status": {"num_lives": 90, "player_score": range(93, 96)},
        "misc": {
            "player_direction": 14,
            "player_missile_direction": 21,
            "robot_missile_direction": 26,
            "robots_killed_count": 91,
            "game_level": 92,
        },
    },
    "bowling": {
        "agent": {"player_x": 29, "player_y": 40},
        "small_object": {"ball_x": 30, "ball_y": 41},
        "status": {"frame_number_display": 36, "score": 33},
        "misc": {"pin_existence": range(57, 67)},
    },
    "boxing": {
        "agent": {"player_x": 32, "player_y": 34},
        "other": {"enemy_x": 33, "enemy_y": 35},
        "status": {"enemy_score": 19, "clock": 17, "player_score": 18},
    },
    "breakout": {
        "agent": {"player_x": 72},
        "small_object": {"ball_x": 99, "ball_y": 101},
        "status": {"score": 84},
        "misc": {"blocks_hit_count": 77, "block_bit_map": range(0, 30)},
    },
    "demonattack": {
        "agent": {"player_x": 22},
        "small_object": {"missile_y": 21},
        "other": {
            "enemy_x1": 17,
            "enemy_x2": 18,
            "enemy_x3": 19,
            "enemy_y1": 69,
            "enemy_y2": 70,
            "enemy_y3": 71,
        },
        "status": {"num_lives": 114},
        "misc": {"level": 62},
    },
    "freeway": {
        "agent": {"player_y": 14},
        "other": {"enemy_car_x": range(108, 118)},
        "status": {"score": 103},
    },
    "frostbite": {
        "agent": {"player_x": 102, "player_y": 100},
        "other": {
            "top_row_iceflow_x": 34,
            "second_row_iceflow_x": 33,
            "third_row_iceflow_x": 32,
            "fourth_row_iceflow_x": 31,
            "enemy_bear_x": 104,
            "enemy_x": range(84, 88),
        },
        "status": {"num_lives": 76, "score": range(72, 75)},
        "misc": {"igloo_blocks_count": 77, "player_direction": 4},
    },
    "hero": {
        "agent": {"player_x": 27, "player_y": 31},
        "status": {"power_meter": 43, "score": (56, 57)},
        "misc": {"room_number": 28, "level_number": 117, "dynamite_count": 50},
    },
    "montezumarevenge": {
        "agent": {"player_x": 42, "player_y": 43},
        "other": {"enemy_skull_x": 47, "enemy_skull_y": 46, "key_monster_x": 44, "key_monster_y": 45},
        "status": {"num_lives": 58, "score_0": 19, "score_1": 20, "score_2": 21},
        "misc": {
            "room_number": 3,
            "player_direction": 52,
            "level": 57,
            "items_in_inventory_count": 61,
            "room_state": 62,
        },
    },
    "mspacman": {
        "agent": {"player_x": 10, "player_y": 16},
        "other": {
            "enemy_sue_x": 6,
            "enemy_inky_x": 7,
            "enemy_pinky_x": 8,
            "enemy_blinky_x": 9,
            "enemy_sue_y": 12,
            "enemy_inky_y": 13,
            "enemy_pinky_y": 14,
            "enemy_blinky_y": 15,
            "fruit_x": 11,
            "fruit_y": 17,
        },
        "status": {"player_score": 120, "num_lives": 123},
        "misc": {"ghosts_count": 19, "player_direction": 56, "dots_eaten_count": 119},
    },
    "pitfall": {
        "agent": {"player_x": 97, "player_y": 105},
        "other": {"enemy_logs_x": 98, "enemy_scorpion_x": 99, "bottom_of_rope_y": 18},
        "status": {"clock_sec": 89, "clock_min": 88},
    },
    "pong": {
        "agent": {"player_y": 51, "player_x": 46},
        "small_object": {"ball_x": 49, "ball_y": 54},
        "other": {"enemy_y": 50, "enemy_x": 45},
        "status": {"enemy_score": 13, "player_score": 14},
    },
    "privateeye": {
        "agent": {"player_x": 63, "player_y": 86},
        "other": {"dove_x": 48, "dove_y": 39},
        "status": {"clock": (67, 69), "score": (73, 74)},
        "misc": {"room_number": 92, "player_direction": 58},
    },
    "qbert": {
        "agent": {"player_x": 43, "player_y": 67, "player_column": 35},
        "other": {"red_enemy_column": 69, "green_enemy_column": 105},
    },
    "riverraid": {
        "agent": {"player_x": 51},
        "small_object": {"missile_x": 117, "missile_y": 50},
        "status": {"fuel_meter_high": 55, "fuel_meter_low": 56},
    },
    "seaquest": {
        "agent": {"player_x": 70, "player_y": 97},
        "small_object": {"diver_or_enemy_missile_x": range(71, 75), "player_missile_x": 103},
        "other": {"enemy_obstacle_x": range(30, 34)},
        "status": {"oxygen_meter_value": 102, "score": (57, 58), "num_lives": 59},
        "misc": {"player_direction": 86, "player_missile_direction": 87, "divers_collected_count": 62},
    },
    "skiing": {
        "agent": {"player_x": 25},
        "other": {"object_y": range(87, 94)},
        "status": {"clock_m": 104, "clock_s": 105, "clock_ms": 106, "score": 107},
    },
    "spaceinvaders": {
        "agent": {"player_x": 28},
        "small_object": {"missiles_y": 9},
        "other": {"enemies_x": 26, "enemies_y": 24},
        "status": {"player_score": 104, "num_lives": 73},
        "misc": {"invaders_left_count": 17},
    },
    "tennis": {
        "agent": {"player_x": 26, "player_y": 24},
        "small_object": {"ball_x": 16, "ball_y": 17},
        "other": {"enemy_x": 27, "enemy_y": 25},
        "status": {"enemy_score": 70, "player_score": 69},
    },
    "venture": {
        "agent": {"player_x": 85, "player_y": 26},
        "other": {
            "sprite0_y": 20,
            "sprite1_y": 21,
            "sprite2_y": 22,
            "sprite3_y": 23,
            "sprite4_y": 24,
            "sprite5_y": 25,
            "sprite0_x": 79,
            "sprite1_x": 80,
            "sprite2_x": 81,
            "sprite3_x": 82,
            "sprite4_x": 83,
            "sprite5_x": 84,
        },
        "status": {"num_lives": 70, "score_1_2": 71, "score_3_4": 72},
        "misc": {"current_room": 90},
    },
    "videopinball": {
        "agent": {"player_left_paddle_y": 98, "player_right_paddle_y": 102},
        "small_object": {"ball_x": 67, "ball_y": 68},
        "status": {"score_1": 48, "score_2": 50},
    },
    "yarsrevenge": {
        "agent": {"player_yar_x": 32, "player_yar_y": 31},
        "small_object": {
            "yar_missile_x": 38,
            "yar_missile_y": 37,
            "qotile_missile_x": 47,
            "qotile_missile_y": 46,
        },
        "other": {"enemy_qotile_x": 43, "enemy_qotile_y": 42},
    },
}


def games() -> list[str]:
    """Return the annotated games, named as ALE names them but without underscores."""
    return list(_GAMES)


def state_variables(game: str) -> dict[str, dict[str, int]]:
    """Return the RAM address of each state variable of a game, by category.

    Args:
        game: ALE's name of the game, such as ``"pong"`` or ``"ms_pacman"``.

    Returns:
        Category to variable to address, 0 to 127. A variable of several bytes is numbered:
        ``score_0``, ``score_1``.

    Raises:
        ValueError: If the game has no annotations.

    Example:
        >>> state_variables("ms_pacman")["agent"]
        {'player_x': 10, 'player_y': 16}
    """
    name = game.replace("_", "").lower()
    if name not in _GAMES:
        raise ValueError(
            f"The RAM of {game!r} is not annotated, so there is nothing to probe for. Annotated games: "
            f"{', '.join(_GAMES)}."
        )
    return {category: _numbered(variables) for category, variables in _GAMES[name].items()}


def _numbered(variables: dict[str, int | Iterable[int]]) -> dict[str, int]:
    addresses = {}
    for variable, where in variables.items():
        if isinstance(where, int):
            addresses[variable] = where
        else:
            addresses.update({f"{variable}_{i}": address for i, address in enumerate(where)})
    return addresses
