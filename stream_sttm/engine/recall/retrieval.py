"""Recall: what a question gets to see of the tokens that its memory has lost.

Its attention while it is read shows whether it looks back at all (`LookbackProbe`). Which tokens it wants is decided by
the archived keys: those that it would attend to most. These tokens are run through all layers behind a preamble of
their own, one frame after the other. They stand before the memory's oldest frame. The memory itself does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm import metrics
from stream_sttm.engine import forward
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.positions import Grid, Positions
from stream_sttm.engine.cache.rolling import CacheSnapshot
from stream_sttm.engine.cache.rotary import rerotated
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.engine.plan import RecallPlan
from stream_sttm.engine.recall.archived import ArchiveEntry, EvictedTokens, PastAnswer
from stream_sttm.engine.recall.lookback import LookbackProbe
from stream_sttm.engine.timer import DeviceTimer
from stream_sttm.engine.view import View
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question
from stream_sttm.visual_tokens import VisualTokens

SPREAD = 5.0  # seconds; windows this close to a better one are considered after all others
_MOST_WORDS = 64  # tokens of a question that are compared with the archive
_MOST_LOGITS = 1 << 24


def search_layers(model: VideoLLM) -> tuple[int, ...]:
    """Return the layers whose keys are archived for search: the first, which knows what is there, and the middle
    one.
    """
    return tuple(sorted({0, len(model.layers) // 2}))


def unrotated(model: VideoLLM, states: Tensor, positions: Tensor) -> Tensor:
    """Return keys or queries (B, heads, N, D) without the rotation for their `positions` (axes, B, N)."""
    cos, sin = model.rotary(states, positions)
    return rerotated(states, cos[:, None], -sin[:, None])


def archive_entry(
    model: VideoLLM,
    positions: Positions,
    groups: Sequence[LayerGroup],
    window: tuple[VisualTokens, VisualTokens],
    grid: Grid,
) -> ArchiveEntry:
    """Return what the archive keeps of a window just run: its survivors, with features from the vision tower, and keys.

    `window` holds all tokens and the survivors. The keys are (layers, N, heads, D) and serve search. Where cells were
    merged before some layer, the features are their mean. A key below the merge is that of a token's first cell.
    """
    whole, tokens = window
    rows, columns = grid
    t, y, x = tokens.boxes[:, :3].unbind(1)
    corners = ((t - whole.boxes[0, 0]) * rows + y) * columns + x
    all_rows = torch.arange(len(tokens), device=corners.device)
    keys = []
    for layer in search_layers(model):
        group = next(group for group in reversed(groups) if layer >= group.first)
        is_merged = group is groups[-1]
        newest, wanted = (tokens, all_rows) if is_merged else (whole, corners)
        position_ids = positions.position_ids(
            group, newest, grid, start=group.emitted - len(newest)
        )[:, wanted]
        position_ids[0] -= group.offset
        rotated_keys = group.newest(layer, wanted, count=len(newest))
        own_keys = unrotated(model, rotated_keys, (position_ids + group.pinned)[:, None])
        keys.append(own_keys[0].transpose(0, 1))
    if groups[-1].first > 0:
        grids = whole.features.reshape(-1, rows, columns, whole.features.shape[-1])
        tokens = replace(tokens, features=box_means(grids, tokens.boxes, whole.boxes[0, 0]))
    return tokens, torch.stack(keys)


def box_means(features: Tensor, boxes: Tensor, first: Tensor) -> Tensor:
    """Return the means (N, C) of features (T, H, W, C) over boxes (N, 5). The boxes' frames count from `first`."""
    t, y0, x0, y1, x1 = boxes.unbind(1)
    t = t - first
    sums = F.pad(features.float().cumsum(1).cumsum(2), (0, 0, 1, 0, 1, 0))
    total = sums[t, y1, x1] - sums[t, y0, x1] - sums[t, y1, x0] + sums[t, y0, x0]
    return (total / ((y1 - y0) * (x1 - x0))[:, None]).to(features.dtype)


@dataclass(frozen=True, slots=True)
class RecallContext:
    """The past of one stream, as the questions to one view may recall it. Later work does not change it."""

    stream: str
    model: VideoLLM
    plan: RecallPlan
    positions: Positions
    grid: Grid
    view: View
    evicted: EvictedTokens
    is_now: tuple[Tensor, ...]
    size_bias: float
    events: tuple[PastAnswer, ...]  # answers that began before the memory's oldest frame
    text_room: int  # tokens of question and answer together

    def recall_mode(self, question: Question) -> str:
        """Return never, auto or always: what the question asks for, else what is configured."""
        return question.recall or self.plan.when

    def probe(self, rows: int) -> LookbackProbe:
        """Return a probe for the attention of `rows` questions to the view."""
        return LookbackProbe(self.view.prefix, self._pinned, self.is_now, rows=rows)

    def looks_back(self, share: float) -> bool:
        """Return whether a question looks back that pays this share of its attention to what is not visible any
        more.
        """
        return share >= self.model.tuned.recall_from

    def recalled(self, question: Question) -> View:
        """Return the view with the tokens that the question asks for. It is the same view where none can be had."""
        with DeviceTimer(self.model.device) as clock:
            view = self._recalled(question)
        return replace(view, recall_clock=clock)

    def _recalled(self, question: Question) -> View:
        chosen = self._choose_rows(self._relevance(question))
        tokens, spans = self._read_tokens(chosen)
        if not len(tokens):
            return self.view
        metrics.RECALLED_TOKENS.labels(self.stream).inc(len(tokens))
        with stage("prefill"):
            part, reaches = self._run(tokens)
        snapshot: CacheSnapshot = self.view.prefix[0]
        return replace(
            self.view,
            prefix=(part, replace(snapshot, hidden=self._pinned), *self.view.prefix[1:]),
            starts=tuple(
                (time, others + reach)
                for (time, others), reach in zip(self.view.starts, reaches, strict=True)
            ),
            visual=self.view.visual + len(tokens),
            before_merge=self.view.before_merge + int(tokens.sizes.sum()),
            span=(min(self.view.span[0], *(span[0] for span in spans)), self.view.span[1]),
            recalled=len(tokens),
        )

    @property
    def _pinned(self) -> int:
        return len(self.model.preamble())

    def _relevance(self, question: Question) -> Tensor:
        """Return (N,): the attention that the question's words would pay to each evicted token."""
        layers = search_layers(self.model)
        total = torch.zeros(len(self.evicted))
        for number, queries in enumerate(self._query_words(question, layers)):
            keys = self.evicted.keys(number).float().transpose(0, 1)  # (kv heads, N, D)
            heads, width = queries.shape[0] // keys.shape[0], queries.shape[-1]
            queries = queries[:, :: max(1, -(-queries.shape[1] // _MOST_WORDS))]
            rows = queries.reshape(keys.shape[0], heads * queries.shape[1], width)
            for piece in torch.split(rows, max(1, _MOST_LOGITS // len(total) // len(keys)), dim=1):
                total += (piece @ keys.transpose(1, 2)).softmax(-1).sum((0, 1))
        return total

    def _query_words(self, question: Question, layers: Sequence[int]) -> list[Tensor]:
        """Return scaled queries (heads, words, D) of the question alone at some layers, without rotation."""
        model = self.model
        # earlier turns are read as context, but only the question itself is searched for
        own_length = len(model.ask(question.text))
        prompt = model.ask(question.text, question.turns)
        ids = torch.tensor([[*model.preamble(), *prompt]], device=model.device)
        count = ids.shape[1]
        positions = torch.arange(count, device=model.device).expand(model.axes, 1, -1)
        recorded: dict[int, Tensor] = {}

        def record(layer: int, queries: Tensor, scale: float) -> None:
            if layer in layers:
                recorded[layer] = (
                    unrotated(model, queries, positions)[0, :, -own_length:].float().cpu() * scale
                )

        forward.run_layers(
            model,
            model.embed(ids),
            (0, layers[-1] + 1),
            positions=positions,
            mask=forward.causal_mask(count, device=model.device),
            cache=SuffixCache(forward.shape_of(model), rows=1, capacity=count),
            query_hook=record,
        )
        return [recorded[layer] for layer in layers]

    def _choose_rows(self, relevance: Tensor) -> list[tuple[int, Tensor]]:
        """Return windows in order of time, each with its wanted rows, within what may be recalled at once."""
        evicted, windows = self.evicted, self.evicted.windows
        best = torch.full((len(windows),), -torch.inf)
        best = best.scatter_reduce(0, evicted.owner, relevance, "amax")
        left, frames = self.plan.tokens, self.positions.frames_within(self.plan.room, self.grid)
        chosen = []
        for index in spread_order(best, [window.captured[1] for window in windows]):
            in_window = slice(
                *torch.searchsorted(evicted.owner, torch.tensor([index, index + 1])).tolist()
            )
            rows = evicted.row[in_window]
            if len(rows) > left:
                rows = rows[relevance[in_window].topk(left).indices].sort().values
            frames -= len(torch.unique(windows[index].boxes[rows, 0]))
            if not len(rows) or frames < 0:
                break
            left -= len(rows)
            chosen.append((index, rows))
        return sorted(chosen, key=lambda one: one[0])

    def _read_tokens(
        self, chosen: Sequence[tuple[int, Tensor]]
    ) -> tuple[VisualTokens, list[tuple[float, float]]]:
        """Return the chosen tokens and when each window was. Their frames are numbered one after the other."""
        parts, spans, frames = [], [], 0
        for index, rows in chosen:
            window = self.evicted.windows[index]
            try:
                tokens = window.tokens(rows)
            except OSError:  # the disk has lost it: go on without it, as without an archive
                continue
            _, rank = torch.unique(tokens.boxes[:, 0], return_inverse=True)
            tokens.boxes[:, 0] = rank + frames
            frames += int(rank[-1]) + 1
            parts.append(tokens)
            spans.append(window.captured)
        device, dtype = self.model.device, self.model.dtype
        if not parts:
            none = torch.empty(0, 5, dtype=torch.int64)
            return VisualTokens(torch.empty(0), none, none[:, 0]), []
        return VisualTokens(
            torch.cat([part.features for part in parts]).to(device, dtype),
            torch.cat([part.boxes for part in parts]).to(device),
            torch.cat([part.sizes for part in parts]).to(device),
        ), spans

    def _run(self, tokens: VisualTokens) -> tuple[SuffixCache, list[int]]:
        """Run the tokens behind a preamble through all layers.

        Returns their cache, and how many positions before the memory they reach in each layer group.
        """
        model, pinned = self.model, self._pinned
        preamble = torch.tensor([model.preamble()], dtype=torch.int64, device=model.device)
        hidden = torch.cat([model.embed(preamble), tokens.features[None]], dim=1)
        count = hidden.shape[1]
        part = SuffixCache(forward.shape_of(model), rows=1, capacity=count)
        groups, ends = self.view.prefix[0].groups, [*self.view.bounds[1:], len(model.layers)]
        first = torch.arange(pinned, device=model.device).expand(model.axes, -1)
        reaches = []
        for group, last in zip(groups, ends, strict=True):
            position_ids, start = self.positions.before(group, tokens, self.grid)
            positions = torch.cat([first, position_ids + pinned], dim=1)
            positions[0, :pinned] += start
            positions[0] -= group.offset
            mask = self._mask(part, (group.first, last), tokens.sizes)
            hidden = forward.run_layers(
                model,
                hidden,
                (group.first, last),
                positions=positions[:, None],
                mask=mask,
                cache=part,
            )
            reaches.append(group.origin - start)
        part.commit(count)
        return part, reaches

    def _mask(self, part: SuffixCache, layers: tuple[int, int], sizes: Tensor) -> Any:
        """Return a causal mask, with the weight of merged tokens where the deep layers have one.

        The weight is also set in `part`, for its readers.
        """
        count = self._pinned + len(sizes)
        mask = forward.causal_mask(count, device=sizes.device)
        if self.size_bias == 0 or layers[1] != len(self.model.layers) or mask is None:
            return mask
        weights = sizes.log() * self.size_bias
        bias = torch.cat([weights.new_zeros(self._pinned), weights])
        part.bias |= dict.fromkeys(range(*layers), bias)
        bias = bias.to(self.model.dtype)
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)


def spread_order(scores: Tensor, times: Sequence[float]) -> Iterator[int]:
    """Yield indices by falling score, without those of -inf.

    Those close in time to a better one come after all others.
    """
    order = scores.argsort(descending=True, stable=True)
    passed, taken = list[int](), list[float]()
    for index in order[scores[order] > -torch.inf].tolist():
        if any(abs(times[index] - other) <= SPREAD for other in taken):
            passed.append(index)
        else:
            taken.append(times[index])
            yield index
    yield from passed
