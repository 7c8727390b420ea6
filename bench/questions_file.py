"""Multiple-choice questions about video files, in the JSON of StreamingBench or OVO-Bench, all checked at once.

Both hold items; StreamingBench's nest `questions` under a video, and may be lists of such items. Field names taken:

    video       video_path, video                     time     time_stamp, realtime: seconds, MM:SS or HH:MM:SS
    answer      answer (a letter), gt (an index)      options  with or without "A. " before them
    kind        task_type, task

https://github.com/THUNLP-MT/StreamingBench, https://github.com/JoeLeelyf/OVO-Bench. Tasks of theirs that are no
multiple choice (proactive output; counting, steps and clues ahead of time) are left out and counted.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.exam import Item
from bench.film import Film
from stream_sttm.errors import ConfigError

_OPEN_ENDED = ("test_info", "ground_truth_output", "ground_truth_time_stamp")
_LETTERED = re.compile(r"^[A-Z][.):]\s*")
_PROMPT = "Question: {}\nOptions:\n{}\nAnswer with the option's letter only."


@dataclass(frozen=True, slots=True)
class _Asked:
    video: Path
    at: float
    item: Item


def read_questions(path: Path, *, videos: Path | None, fps: float) -> tuple[list[Film], int]:
    """Return the films to show, each with its questions, and how many items were left out.

    `videos`: the folder that video paths are relative to, else the file's own. Raises ConfigError, in one line, for
    whatever is not as it must be.
    """
    films: dict[Path, list[tuple[float, Item]]] = defaultdict(list)
    left_out = 0
    for where, entry in _entries(_load(path), str(path)):
        if any(key in entry for key in _OPEN_ENDED):
            left_out += 1
            continue
        asked = _asked(entry, where, videos or path.parent)
        films[asked.video].append((asked.at, asked.item))
    if not films:
        raise ConfigError(f"{path}: holds no multiple-choice question")
    ordered = {video: sorted(asked, key=lambda one: one[0]) for video, asked in films.items()}
    return [Film(video, fps, tuple(asked)) for video, asked in ordered.items()], left_out


def _load(path: Path) -> list[Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    if not isinstance(tree, list):
        raise ConfigError(f"{path}: must hold a list of questions, not {_kind(tree)}")
    return tree


def _entries(tree: list[Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every question with all that is said of it, and where it stands."""
    for index, entry in enumerate(tree):
        here = f"{where}: item {index}"
        if isinstance(entry, list):
            yield from _entries(entry, here)
        elif not isinstance(entry, dict):
            raise ConfigError(f"{here}: must be an object, not {_kind(entry)}")
        elif "questions" in entry:
            questions = _field(entry, ("questions",), list, here)
            outer = {key: value for key, value in entry.items() if key != "questions"}
            for place, question in enumerate(questions):
                if not isinstance(question, dict):
                    raise ConfigError(f"{here}, question {place}: must be an object")
                yield f"{here}, question {place}", {**outer, **question}
        else:
            yield here, entry


def _asked(entry: Mapping[str, Any], where: str, folder: Path) -> _Asked:
    video = folder / _field(entry, ("video_path", "video"), str, where)
    if not video.is_file():
        raise ConfigError(f"{where}: there is no video {video}")
    text = _field(entry, ("question",), str, where)
    options = _field(entry, ("options",), list, where)
    if not 2 <= len(options) <= 26 or not all(isinstance(option, str) for option in options):
        raise ConfigError(f"{where}: options must be 2 to 26 texts")
    lettered = [
        f"{chr(ord('A') + place)}. {_LETTERED.sub('', option)}"
        for place, option in enumerate(options)
    ]
    item = Item(
        text=_PROMPT.format(text, "\n".join(lettered)),
        truth=_letter(entry, len(options), where),
        kind=str(entry.get("task_type", entry.get("task", "question"))),
        choices=len(options),
    )
    return _Asked(video, _seconds(entry, where), item)


def _letter(entry: Mapping[str, Any], count: int, where: str) -> str:
    """Return the letter of the right option."""
    gt = entry.get("gt")
    if gt is not None:
        if isinstance(gt, bool) or not isinstance(gt, int) or not 0 <= gt < count:
            raise ConfigError(f"{where}: gt must be a number from 0 to {count - 1}, not {gt!r}")
        return chr(ord("A") + gt)
    answer: str = _field(entry, ("answer",), str, where).strip().rstrip(".")
    if len(answer) != 1 or not 0 <= ord(answer.upper()) - ord("A") < count:
        last = chr(ord("A") + count - 1)
        raise ConfigError(f"{where}: answer must be a letter from A to {last}, not {answer!r}")
    return answer.upper()


def _seconds(entry: Mapping[str, Any], where: str) -> float:
    """When it is asked, in seconds of video."""
    time_given = _field(entry, ("time_stamp", "realtime"), (int, float, str), where)
    try:
        parts = [float(part) for part in str(time_given).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < 1e9 for part in parts):
        raise ConfigError(f"{where}: the time must be seconds or HH:MM:SS, not {time_given!r}")
    return math.fsum(part * 60**place for place, part in enumerate(reversed(parts)))


def _field(entry: Mapping[str, Any], names: tuple[str, ...], kind: Any, where: str) -> Any:
    found = next((name for name in names if name in entry), None)
    if found is None:
        raise ConfigError(f"{where}: has no field {' or '.join(map(repr, names))}")
    value = entry[found]
    if isinstance(value, bool) or not isinstance(value, kind) or value == "":
        raise ConfigError(f"{where}: field {found!r} can't be {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """Return what a JSON value is, in JSON's words."""
    if value == "":
        return "an empty text"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
