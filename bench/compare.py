"""One comparison: thresholds for every arm that needs some, then every arm on everything that is shown.

Both parts are cut into pieces for a crew of workers. Arms that are the same under two names run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.arms import Arm, Ground, Recipe, arm, share
from bench.budget import Settled, encode, record, settle
from bench.exam import Footage
from bench.process_pool import ProcessPool
from bench.watching import Sheet, watch
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM

TOGETHER = 3  # searches in one piece; they share what a layer sees


def compare(
    workers: ProcessPool,
    wanted: Sequence[Recipe],
    floor: Ground,
    calibration: Sequence[Footage],
    shown: Sequence[Footage],
) -> tuple[list[Sheet], list[str]]:
    """Every arm's sheets on what is shown, and in words which budgets are out of reach.

    Arms that are the same under two names run once and count for both.
    """
    found = _settled(workers, wanted, calibration, floor)
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
    return [sheet for part in own.values() for sheet in part], _missed(wanted, floor, found)


def _search(recipe: Recipe) -> Recipe:
    """Return what of a recipe decides its thresholds."""
    alike = replace(
        recipe,
        name="",
        size_bias=0.0,
        positions="own",
        capacity=None,
        retention="fifo",
        kv="auto",
        recall="never",
    )
    # What reaches the merge from pruned layers depends on how they weigh and place what is left, so those stay.
    return replace(recipe, name="", capacity=None) if recipe.prune_shallow else alike


def _settled(
    workers: ProcessPool, wanted: Sequence[Recipe], calibration: Sequence[Footage], floor: Ground
) -> dict[Recipe, Settled]:
    """Thresholds for every recipe that needs some."""
    searches = list(dict.fromkeys(_search(recipe) for recipe in wanted if recipe.is_searched))
    searches.sort(key=lambda one: one.at_layer)
    pieces = [searches[start : start + TOGETHER] for start in range(0, len(searches), TOGETHER)]
    done = workers.do("thresholds", partial(_found, floor, calibration), pieces)
    return {one.recipe: one for part in done for one in part}


def _missed(wanted: Sequence[Recipe], floor: Ground, found: dict[Recipe, Settled]) -> list[str]:
    """Return a line for each arm whose budget can't be reached."""
    lines = []
    for recipe in wanted:
        one, fresh = found.get(_search(recipe)), recipe.fresh / floor.frames
        if one is not None and not one.is_reached:
            lines.append(
                f"{recipe.name}: no thresholds leave {recipe.budget:.0%} of the tokens; nearest: {one.share:.1%}"
            )
        elif one is None and recipe.budget <= fresh:
            lines.append(f"{recipe.name}: the fresh view alone is {fresh:.1%} of the tokens")
    return list(dict.fromkeys(lines))


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
