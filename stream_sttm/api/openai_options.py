"""The keys of OpenAI's chat completions that change the answer: those we honour, and those we refuse by name.

A key that changes nothing we do is left alone (docs/openai.md). One that asks for something else than is given must not
be: whoever sends it would take the answer for what was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

MAX_STOPS = 4
Stop = Annotated[str, Field(min_length=1, max_length=256)]


def _nothing(value: Any) -> bool:
    return value in (None, False, 0, "", [], {})


def _no_call(value: Any) -> bool:
    return value in (None, "none", "auto")  # nothing is called where there is nothing to call


_HARMLESS: Mapping[str, Callable[[Any], bool]] = {  # the values that ask for nothing
    **dict.fromkeys(("tools", "functions", "logprobs", "top_logprobs", "logit_bias"), _nothing),
    **dict.fromkeys(("tool_choice", "function_call"), _no_call),
    **dict.fromkeys(("n", "best_of"), lambda value: value is None or value == 1),
    "modalities": lambda value: value in (None, [], ["text"]),
    **dict.fromkeys(
        ("audio", "prediction", "web_search_options", "moderation"), lambda value: value is None
    ),
    **dict.fromkeys(("echo", "suffix", "min_tokens", "stop_token_ids", "ignore_eos"), _nothing),
    **dict.fromkeys(
        (
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
            *("structured_outputs", "grammar", "json_schema"),
        ),
        lambda value: value is None,
    ),
}


def refused(sent: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first key that asks for what is not supported, and a line about it; None where there is none."""
    for key, is_harmless in _HARMLESS.items():
        if key in sent and not is_harmless(sent[key]):
            return key, f"{key}: is not supported here; leave it out"
    return None


class Cut:
    """The text of an answer up to the first of some words, told piece by piece."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=1)
        self._text, self._told = "", 0
        self.has_ended = False

    def more(self, text: str, *, is_last: bool) -> str:
        """Return what of the text so far may be sent now: nothing that may still turn out to begin a stop word."""
        if self.has_ended:
            return ""
        begin = max(0, len(self._text) - self._longest + 1)
        self._text += text
        found = [at for stop in self._stops if (at := self._text.find(stop, begin)) >= 0]
        end = len(self._text) if is_last else len(self._text) - self._longest + 1
        if found:
            end, self.has_ended = min(found), True
        begin, self._told = self._told, max(self._told, end)
        return self._text[begin : self._told]
