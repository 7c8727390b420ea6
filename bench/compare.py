"""One comparison: thresholds for every arm that needs some, then every arm on everything that is shown.

Both parts are cut into pieces for a crew of workers. Arms that are the same under two names run once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.arms import Arm, Ground, Recipe, arm, share
from bench.budget import Settled, encode, record, settle
from bench.crew import Crew
from bench.exam import Footage
from bench.watching import Sheet, watch
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM

TOGETHER = 3  # searches in one piece; they share what a layer sees


def compare(
    workers: Crew,
    wanted: Sequence[Recipe],
    floor: Ground,
    calibration: Sequence[Footage],
    shown: Sequence[Footage],
) -> list[Sheet]:
    """Every arm's sheets on what is shown; arms that are the same under two names run once and count for both."""
    found = _settled(workers, wanted, floor, calibration)
    arms, twins = list[Arm](), dict[str, str]()
    for place, recipe in enumerate(wanted):
        twin = next((other for other in wanted[:place] if recipe.is_like(other)), None)
        if twin is not None:
            twins[recipe.name] = twin.name
        else:
            key = _search(recipe)
            chosen = found[key].options if key in found else share(recipe, floor)
            arms.append(arm(recipe, floor, chosen))
    parts = workers.do("streams", partial(_watched, arms), shown)
    sheets = [sheet for part in parts for sheet in part]
    own: dict[str, list[Sheet]] = {recipe.name: [] for recipe in wanted}
    for sheet in sheets:
        own[sheet.arm].append(sheet)
    for name, twin_name in twins.items():
        own[name] = [replace(sheet, arm=name) for sheet in own[twin_name]]
    if not sheets:
        raise ConfigError("not one question was asked; show longer streams")
    return [sheet for part in own.values() for sheet in part]


def _search(recipe: Recipe) -> Recipe:
    """What of a recipe decides its thresholds."""
    if recipe.prune_shallow:
        return replace(recipe, name="")
    return replace(recipe, name="", size_bias=0.0, positions="own", capacity=None)


def _settled(
    workers: Crew, wanted: Sequence[Recipe], floor: Ground, calibration: Sequence[Footage]
) -> dict[Recipe, Settled]:
    """Thresholds for every recipe that needs some, told where a budget is out of reach."""
    searches = list(dict.fromkeys(_search(recipe) for recipe in wanted if recipe.is_searched))
    searches.sort(key=lambda one: one.at_layer)
    pieces = [searches[start : start + TOGETHER] for start in range(0, len(searches), TOGETHER)]
    done = workers.do("thresholds", partial(_found, floor, calibration), pieces)
    found = {one.recipe: one for part in done for one in part}
    for recipe in wanted:
        one = found.get(_search(recipe))
        if one is not None and not one.is_reached:
            note(
                f"{recipe.name}: {recipe.budget:.0%} of the tokens is out of reach; nearest is {one.share:.1%}"
            )
        if not recipe.is_searched and recipe.budget * floor.frames <= recipe.fresh:
            note(f"{recipe.name}: the fresh view alone takes more than {recipe.budget:.0%}")
    return found


def _found(
    floor: Ground, calibration: Sequence[Footage], model: VideoLLM, searches: Sequence[Recipe]
) -> list[Settled]:
    """Settle recipes in a worker; what a layer sees is recorded once for all of them."""
    reels = [encode(model, footage) for footage in calibration]
    layers = {recipe.at_layer for recipe in searches}
    recorded = {layer: [record(model, layer, floor, reel) for reel in reels] for layer in layers}
    return [settle(model, one, floor, reels, recorded[one.at_layer]) for one in searches]


def _watched(arms: Sequence[Arm], model: VideoLLM, footage: Footage) -> list[Sheet]:
    return watch(model, arms, footage)


def note(line: str) -> None:
    """Tell people something that is no part of the result."""
    print(f"bench.accuracy: {line}", file=sys.stderr)
