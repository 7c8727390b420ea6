"""Several questions of one stream, answered together: one shared prefix, one batch, greedy decoding.

A batch holds the view it was asked of, so appends, evictions and rebasing meanwhile change nothing for it. Padding
sits between a short question and its answer and is masked; a row's positions skip it. Questions are read in pieces of
PIECE tokens, so that a long one keeps other streams waiting no longer than a short one. Knows no queue and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.engine import decoder
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
    """Questions that are being answered from one view."""

    def __init__(self, model: VideoLLM, view: View, questions: Sequence[Question]) -> None:
        self.view = view
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
        hidden = self._walk(self._ids[:, start:end], steps.expand(len(self._rows), -1), mask)
        last = self._lengths - 1 - start
        ends_here = ((last >= 0) & (last < end - start))[:, None]
        found = hidden[torch.arange(len(last), device=device), last.clamp(0, end - start - 1)]
        self._last = torch.where(ends_here, found, self._last) if start else found
        return self._take(self._last) if end == self._longest else []

    def _walk(self, ids: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
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
        if finished and open_rows:
            rows = torch.tensor(open_rows, device=chosen.device)
            self._suffix.keep_rows(rows)
            chosen, self._lengths, self._real = chosen[rows], self._lengths[rows], self._real[rows]
        self._rows = [self._rows[place] for place in open_rows]
        self._next = chosen
        return finished

    def _finish(self, row: _Row) -> Finished:
        text = self._model.answer(row.ids)
        counts = TokenCounts(self.view.visual, self.view.before_merge, row.asked, len(row.ids))
        return Finished(row.question, text, counts)
