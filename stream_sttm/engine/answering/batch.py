"""Several questions of one stream, answered together: one shared prefix, one batch, greedy decoding.

A batch holds the view that it was asked of, so later appends, evictions and rebasing change nothing for it. Questions
are read as one tree, in pieces of PIECE tokens, so a long question delays other streams no longer than a short one.
Answers are written row by row, behind padding that is masked and that positions skip. Questions that turn out to look
back leave the batch, to be asked again with a view that shows more of the past. What a token may be is decided in
formats.py. Knows no queue and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stream_sttm.engine import forward
from stream_sttm.engine.answering.formats import (
    AnswerFormats,
    Options,
    first_scores,
    probabilities,
)
from stream_sttm.engine.answering.prompt_tree import PromptTree
from stream_sttm.engine.answering.sequence import Completion, SequenceState
from stream_sttm.engine.attention import PrefixQueries, QueryHook
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.engine.recall.lookback import LookbackProbe
from stream_sttm.engine.recall.retrieval import RecallContext
from stream_sttm.engine.view import View
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question

PIECE = 512  # tokens of all questions together that one step reads


class AnswerBatch:
    """Questions that are answered from one view.

    - `past`: what those questions may recall that are to do so if they look back. None where none may.
    - `history`: text that is put before each question.
    - `make_view`: set where the view is yet to be made from the given one, which is then the first step.

    Memory on the device is allocated at the beginning of a step. So making a batch can't run out of it, and no answer
    of another batch is lost with it.
    """

    def __init__(
        self,
        model: VideoLLM,
        view: View,
        questions: Sequence[Question],
        formats: AnswerFormats,
        *,
        past: RecallContext | None = None,
        history: str = "",
    ) -> None:
        self.view = view
        self.looking_back: list[Question] = []  # left the batch, to be asked with more of the past
        self.past = past
        self.make_view: Callable[[], View] | None = None
        self._probe: LookbackProbe | None = None
        self._model = model
        prompts = [formats.prompt(question, history) for question in questions]
        self._rows = [
            SequenceState(
                question, len(ids), formats.options(question.form), formats.grammar(question.form)
            )
            for question, ids in zip(questions, prompts, strict=True)
        ]
        self._tree = PromptTree(prompts)
        self._paths = self._tree.paths  # by row
        self._is_allocated = self._is_prefilled = self._is_decoding = False
        self._last = torch.empty(0)  # (B, C), hidden states of each question's last token
        self._next = torch.empty(0)

    @property
    def questions(self) -> list[Question]:
        """The questions without an answer so far."""
        return [row.question for row in self._rows]

    def partial_texts(self) -> list[tuple[Question, str]]:
        """Return the streamed questions whose answers are being written, each with its text so far."""
        writing = [row for row in self._rows if row.ids and row.question.is_streamed]
        # the bytes of a character may come one by one
        texts = [self._model.answer(row.ids).rstrip("\ufffd") for row in writing]
        return [(row.question, text) for row, text in zip(writing, texts, strict=True)]

    def step(self) -> list[Completion]:
        """Read the next piece of the questions, or write one more token for each.

        Returns the answers that are finished now.
        """
        if self.make_view is not None:
            self.view, self.make_view = self.make_view(), None
            return []
        if not self._is_allocated:
            self._allocate()
        if not self._is_prefilled:
            with stage("prefill"):
                return self._prefill()
        with stage("decode_text"):
            return self._decode()

    def _allocate(self) -> None:
        """Allocate the cache that reading the questions needs."""
        self._probe = self.past.probe(len(self._rows)) if self.past is not None else None
        self._suffix = SuffixCache(forward.shape_of(self._model), rows=1, capacity=len(self._tree))
        self._is_allocated = True

    def _decode(self) -> list[Completion]:
        """Run the newest token of each row and choose the next. Returns the answers that are finished now."""
        if not self._is_decoding:
            self._begin_decoding()
        written = torch.tensor(
            [[len(row.ids) - 1] for row in self._rows], device=self._model.device
        )
        end = self._suffix.length + 1
        mask = self._is_real[:, None, None, :end]
        steps = self._lengths[:, None] + written
        hidden = self._run_layers(self._next[:, None], steps, mask, self._suffix)
        return self._choose_tokens(hidden[:, -1])

    def _prefill(self) -> list[Completion]:
        """Read the next piece of the prompts. After the last piece, choose each answer's first token.

        Returns the answers that are finished by it.
        """
        start, model = self._suffix.length, self._model
        end = min(len(self._tree), start + PIECE)
        piece = self._tree.piece(start, end, len(model.layers), model.device)
        mask = torch.zeros(piece.sees.shape, dtype=model.dtype, device=model.device)
        mask.masked_fill_(~piece.sees, -torch.inf)
        query_hook = partial(self._probe.observe, piece.last, piece.ends) if self._probe else None
        self._suffix.visible = piece.before
        hidden = self._run_layers(
            piece.ids[None],
            piece.depths[None],
            mask[None, None],
            self._suffix,
            query_hook,
            piece.prefix_queries,
        )
        last = hidden[0, piece.last]
        self._last = torch.where(piece.ends[:, None], last, self._last) if start else last
        if end < len(self._tree):
            return []
        self._is_prefilled = True
        self._split_lookback()
        return self._choose_tokens(self._last) if self._rows else []

    def _begin_decoding(self) -> None:
        """Give each question its own keys and values, with room for its answer."""
        device = self._model.device
        longest = max(len(path) for path in self._paths)
        room = max(question.max_new_tokens for question in self.questions)
        padded = [[*path, *[path[-1]] * (longest - len(path))] for path in self._paths]
        self._suffix = self._suffix.expand(torch.tensor(padded, device=device), room=room)
        self._lengths = torch.tensor([len(path) for path in self._paths], device=device)
        column = torch.arange(longest + room, device=device)
        # (B, columns), False at padding
        self._is_real = (column < self._lengths[:, None]) | (column >= longest)
        self._is_decoding = True

    def _split_lookback(self) -> None:
        """Move the questions that may look back, and do, to `looking_back`."""
        if self.past is None or self._probe is None:
            return
        kept = []
        for index, (row, share) in enumerate(
            zip(self._rows, self._probe.shares.tolist(), strict=True)
        ):
            if self.past.recall_mode(row.question) == "auto" and self.past.looks_back(share):
                self.looking_back.append(row.question)
            else:
                kept.append(index)
        self._last = self._last[kept]
        self._keep_rows(kept)

    def _run_layers(
        self,
        ids: Tensor,
        steps: Tensor,
        mask: Tensor,
        suffix: SuffixCache,
        query_hook: QueryHook | None = None,
        prefix_queries: Sequence[PrefixQueries | None] = (),
    ) -> Tensor:
        """Run token ids (B, N), at `steps` behind the start of the text, through all layers. Returns (B, N, C)."""
        model, view = self._model, self.view
        hidden = model.embed(ids)
        ends = [*view.bounds[1:], len(model.layers)]
        for (time, others), first, last in zip(view.starts, view.bounds, ends, strict=True):
            starts = [time, *[others] * (model.axes - 1)]
            positions = torch.stack([steps + start for start in starts])
            hidden = forward.run_layers(
                model,
                hidden,
                (first, last),
                positions=positions,
                mask=mask,
                cache=suffix,
                prefix=view.prefix,
                query_hook=query_hook,
                prefix_queries=prefix_queries,
            )
        suffix.commit(ids.shape[1])
        return hidden

    def _choose_tokens(self, hidden: Tensor) -> list[Completion]:
        """Choose each row's next token. Returns the answers that are finished by it, and removes their rows."""
        logits = self._model.logits(hidden)
        for index, row in enumerate(self._rows):
            if row.grammar is not None:
                refused = ~row.grammar.allowed().to(logits.device)
                logits[index].masked_fill_(refused, -torch.inf)
        chosen = logits.argmax(dim=-1)
        logs = (logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)).tolist()
        weights = self._option_probabilities(logits)
        finished, open_rows = [], []
        # Only here does answering wait for the device: which rows are finished decides what runs next.
        for index, (row, token) in enumerate(zip(self._rows, chosen.tolist(), strict=True)):
            if index in weights:
                finished.append(row.complete_choice(weights[index], self.view))
                continue
            is_end = token in self._model.eos
            row.log += logs[index]
            if not is_end:
                row.ids.append(token)
                is_end = row.grammar is not None and row.grammar.accept(token)
            if is_end or len(row.ids) >= row.question.max_new_tokens:
                finished.append(row.complete_text(self._model, self.view, is_end=is_end))
            else:
                open_rows.append(index)
        self._next = chosen[open_rows]
        self._keep_rows(open_rows)
        return finished

    def _keep_rows(self, indices: list[int]) -> None:
        """Keep only the rows with these indices."""
        if self._is_decoding and 0 < len(indices) < len(self._rows):
            rows = torch.tensor(indices, device=self._model.device)
            self._suffix.keep_rows(rows)
            self._lengths, self._is_real = self._lengths[rows], self._is_real[rows]
        self._rows = [self._rows[index] for index in indices]
        self._paths = [self._paths[index] for index in indices]

    def _option_probabilities(self, logits: Tensor) -> dict[int, list[float]]:
        """Return the probability of each option, by row index, for rows that choose one.

        Logits (B, V) are the first token's.
        """
        rows_of: dict[int, list[int]] = {}
        for index, row in enumerate(self._rows):
            if row.options is not None:
                rows_of.setdefault(id(row.options), []).append(index)
        weights: dict[int, list[float]] = {}
        for indices in rows_of.values():
            options = self._rows[indices[0]].options
            assert options is not None
            if options.differ_in_first_token:
                scores = first_scores(logits[indices], options)
            else:
                scores = torch.stack(
                    [self._option_scores(options, at, logits[at]) for at in indices]
                )
            each = probabilities(scores, self._model.tuned.temperature).tolist()
            weights.update(zip(indices, each, strict=True))
        return weights

    def _option_scores(self, options: Options, index: int, logits: Tensor) -> Tensor:
        """Return (options,) log-probabilities of whole answers, by one more pass. Logits (V,) are the first token's."""
        first_logits = logits.tolist()
        spellings = [
            max(option.spellings, key=lambda ids: first_logits[ids[0]])
            for option in options.options
        ]
        longest = max(len(ids) for ids in spellings)
        rows_at_once = max(1, PIECE // longest)
        pieces = [
            spellings[start : start + rows_at_once]
            for start in range(0, len(spellings), rows_at_once)
        ]
        rest = torch.cat([self._continuation_scores(index, piece) for piece in pieces])
        return logits[torch.tensor([ids[0] for ids in spellings], device=logits.device)] + rest

    def _continuation_scores(self, index: int, spellings: Sequence[Sequence[int]]) -> Tensor:
        """Return (R,) log-probabilities that an answer with this first token continues so to its end."""
        device, path = self._model.device, torch.tensor(self._paths[index])
        rows, longest, length = len(spellings), max(len(ids) for ids in spellings), len(path)
        suffix = self._suffix.expand(path.to(device).expand(rows, -1), room=longest)
        ids = torch.tensor([[*one, *[one[-1]] * (longest - len(one))] for one in spellings])
        ids = ids.to(device)
        steps = torch.arange(longest, device=device)
        mask = torch.arange(length + longest, device=device) <= (length + steps)[:, None]
        hidden = self._run_layers(ids, (length + steps).expand(rows, -1), mask[None, None], suffix)
        logs = self._model.logits(hidden.flatten(0, 1)).log_softmax(dim=-1)
        logs = logs.reshape(rows, longest, -1)
        lengths = torch.tensor([len(one) for one in spellings], device=device)
        follows = logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        follows = torch.where(steps[1:] < lengths[:, None], follows, 0).sum(dim=1)
        ends = logs[torch.arange(rows, device=device), lengths - 1][:, sorted(self._model.eos)]
        return follows + ends.logsumexp(dim=1)
