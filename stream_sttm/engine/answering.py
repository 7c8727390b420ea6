"""Several questions of one stream, answered together: one shared prefix, one batch, greedy decoding.

A batch holds the view it was asked of, so appends, evictions and rebasing meanwhile change nothing for it. Padding
sits between a short question and its answer and is masked; a row's positions skip it. Questions are read in pieces of
PIECE tokens, so that a long one keeps other streams waiting no longer than a short one. Those that turn out to look
back are set aside, to be asked again of a view that shows them more of the past. Knows no queue and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stream_sttm.engine import decoder
from stream_sttm.engine.attention import Watch
from stream_sttm.engine.recall import Past
from stream_sttm.engine.suffix import Suffix
from stream_sttm.engine.view import View
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question, TokenCounts

PIECE = 512  # question tokens of all rows together that one step reads


@dataclass(frozen=True, slots=True)
class Finished:
    """One question's answer text and what it cost."""

    question: Question
    text: str
    tokens: TokenCounts


@dataclass(slots=True)
class _Row:
    question: Question
    asked: int
    ids: list[int]


class AnswerBatch:
    """Questions that are being answered from one view.

    `past`: what those among them may recall that are to do so if they look back; `opening`: what makes another view of
    the given one, as a step of its own.
    """

    def __init__(
        self,
        model: VideoLLM,
        view: View,
        questions: Sequence[Question],
        *,
        past: Past | None = None,
        opening: Callable[[], View] | None = None,
    ) -> None:
        self.view = view
        self.looking_back: list[Question] = []  # set aside, to be asked with more of the past
        self.past, self._opening = past, opening
        self._gaze = past.gaze(len(questions)) if past is not None else None
        self._model = model
        prompts = [model.ask(question.text) for question in questions]
        self._rows = [
            _Row(question, len(ids), []) for question, ids in zip(questions, prompts, strict=True)
        ]
        self._longest = max(len(ids) for ids in prompts)
        most = max(question.max_new_tokens for question in questions)
        self._suffix = Suffix(
            decoder.shape_of(model), rows=len(prompts), capacity=self._longest + most
        )
        device = model.device
        self._lengths = torch.tensor([len(ids) for ids in prompts], device=device)
        columns = torch.arange(self._longest + most, device=device)
        asked = columns < self._lengths[:, None]
        self._real = asked | (columns >= self._longest)  # (B, columns), False at padding
        padded = [[*ids, *[ids[-1]] * (self._longest - len(ids))] for ids in prompts]
        self._ids = torch.tensor(padded, device=device)
        self._last = torch.empty(0)  # (B, C), what stands behind each question's last token
        self._next = torch.empty(0)

    @property
    def questions(self) -> list[Question]:
        """Those without an answer so far."""
        return [row.question for row in self._rows]

    def step(self) -> list[Finished]:
        """Read the next piece of the questions, or write one more token for each; returns those answered now."""
        if self._opening is not None:
            self.view, self._opening = self._opening(), None
            return []
        if self._suffix.length < self._longest:
            with stage("prefill"):
                return self._read()
        with stage("decode_text"):
            return self._write()

    def _write(self) -> list[Finished]:
        behind = torch.tensor([[len(row.ids) - 1] for row in self._rows], device=self._model.device)
        end = self._suffix.length + 1
        mask = self._real[:, None, None, :end]
        hidden = self._walk(self._next[:, None], self._lengths[:, None] + behind, mask)
        return self._take(hidden[:, -1])

    def _read(self) -> list[Finished]:
        start, device = self._suffix.length, self._model.device
        end = min(self._longest, start + max(1, PIECE // len(self._rows)))
        steps = torch.arange(start, end, device=device)
        seen = torch.arange(end, device=device)
        causal = seen <= steps[:, None]
        # A padded column may look at itself, or its softmax would have nothing to sum over.
        itself = seen == steps[:, None]
        mask = (causal & (self._real[:, None, :end] | itself))[:, None]
        last = self._lengths - 1 - start
        ends_here, last = (last >= 0) & (last < end - start), last.clamp(0, end - start - 1)
        watch = partial(self._gaze.see, last, ends_here) if self._gaze else None
        hidden = self._walk(self._ids[:, start:end], steps.expand(len(self._rows), -1), mask, watch)
        found = hidden[torch.arange(len(last), device=device), last]
        self._last = torch.where(ends_here[:, None], found, self._last) if start else found
        if end < self._longest:
            return []
        self._set_aside()
        return self._take(self._last) if self._rows else []

    def _set_aside(self) -> None:
        """Go on without the questions that may look back and do."""
        if self.past is None or self._gaze is None:
            return
        stays = []
        for place, (row, share) in enumerate(
            zip(self._rows, self._gaze.shares.tolist(), strict=True)
        ):
            if self.past.wishes(row.question) == "auto" and self.past.is_sought(share):
                self.looking_back.append(row.question)
            else:
                stays.append(place)
        self._last = self._last[stays]
        self._keep(stays)

    def _walk(self, ids: Tensor, steps: Tensor, mask: Tensor, watch: Watch | None = None) -> Tensor:
        """(B, N) ids at `steps` behind the start of the text -> (B, N, C) after the last layer."""
        model, view = self._model, self.view
        hidden = model.embed(ids)
        ends = [*view.bounds[1:], len(model.layers)]
        for (time, place), first, last in zip(view.starts, view.bounds, ends, strict=True):
            axes = [time, *[place] * (model.axes - 1)]
            positions = torch.stack([steps + start for start in axes])
            hidden = decoder.walk(
                model,
                hidden,
                (first, last),
                positions=positions,
                mask=mask,
                cache=self._suffix,
                prefix=view.prefix,
                watch=watch,
            )
        self._suffix.commit(ids.shape[1])
        return hidden

    def _take(self, hidden: Tensor) -> list[Finished]:
        """Choose each row's next token, and set aside the rows that are done."""
        chosen = self._model.logits(hidden).argmax(dim=-1)
        finished, open_rows = [], []
        # The one place where answering waits for the device: which rows are done decides what runs next.
        for place, (row, token) in enumerate(zip(self._rows, chosen.tolist(), strict=True)):
            is_end = token in self._model.eos
            if not is_end:
                row.ids.append(token)
            if is_end or len(row.ids) >= row.question.max_new_tokens:
                finished.append(self._finish(row))
            else:
                open_rows.append(place)
        self._next = chosen[open_rows]
        self._keep(open_rows)
        return finished

    def _keep(self, places: list[int]) -> None:
        """Go on with some rows only."""
        if 0 < len(places) < len(self._rows):
            rows = torch.tensor(places, device=self._model.device)
            self._suffix.keep_rows(rows)
            self._lengths, self._real = self._lengths[rows], self._real[rows]
        self._rows = [self._rows[place] for place in places]

    def _finish(self, row: _Row) -> Finished:
        text = self._model.answer(row.ids)
        view = self.view
        counts = TokenCounts(view.visual, view.before_merge, row.asked, len(row.ids), view.recalled)
        return Finished(row.question, text, counts)
