"""Layers of transformers before and after `past_key_values` was renamed: each gets its cache by its own name."""

from __future__ import annotations

import warnings
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stream_sttm.engine import forward
from stream_sttm.errors import UnsupportedModel
from stream_sttm.models.family import VideoLLM
from stream_sttm.models.layout import cache_argument


class Older(nn.Module):
    def forward(self, hidden: Tensor, past_key_values: Any = None, **_: Any) -> Tensor:
        past_key_values.append("taken")
        return hidden


class Newer(nn.Module):
    def forward(self, hidden: Tensor, cache: Any = None, **_: Any) -> Tensor:
        cache.append("taken")
        return hidden


def _deprecating(call: Any) -> Any:
    """Take the older name as well, and warn, as transformers does for a while."""

    @wraps(call)
    def wrapped(self: nn.Module, hidden: Tensor, **named: Any) -> Any:
        if "past_key_values" in named:
            warnings.warn("past_key_values is deprecated", FutureWarning, stacklevel=2)
            named["cache"] = named.pop("past_key_values")
        return call(self, hidden, **named)

    return wrapped


class Between(nn.Module):
    @_deprecating
    def forward(self, hidden: Tensor, cache: Any = None, **_: Any) -> Tensor:
        cache.append("taken")
        return hidden


class Neither(nn.Module):
    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden


@pytest.mark.parametrize(
    ("kind", "name"), [(Older, "past_key_values"), (Between, "cache"), (Newer, "cache")]
)
def test_a_layer_gets_its_cache_by_the_name_that_it_has(kind: type[nn.Module], name: str) -> None:
    layer, cache = kind(), list[str]()
    assert cache_argument(layer) == name
    model: Any = SimpleNamespace(
        rotary=lambda *_: None, layers=[layer], cache_argument=cache_argument(layer)
    )
    hidden = torch.zeros(1, 1, 4)
    positions = torch.zeros(1, 1, 1)
    forward.run_layers(model, hidden, (0, 1), positions=positions, mask=None, cache=cache)
    assert cache == ["taken"]


def test_a_layer_that_takes_no_cache_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModel, match="layers of the class Neither take no cache"):
        cache_argument(Neither())


def test_the_installed_librarys_layers_are_asked_once_at_the_start(tiny_model: VideoLLM) -> None:
    assert tiny_model.cache_argument in ("cache", "past_key_values")
