"""Several questions of one stream, answered together: one shared prefix, one batch, greedy decoding.

A batch holds the view that it was asked of, so later appends, evictions and rebasing change nothing for it. Questions
are read as one tree, in pieces of PIECE tokens, so a long question delays other streams no longer than a short one.
Answers are written row by row, behind padding that is masked and that positions skip. Questions that turn out to look
back leave the batch, to be asked again with a view that shows more of the past. What a token may be is decided in
formats.py. A question that fails by itself fails alone. Knows no queue and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stream_sttm.engine import forward
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.answering.isolation import alone
from stream_sttm.engine.answering.option_scoring import OptionScoring, first_weights
from stream_sttm.engine.answering.prompt_tree import Piece, PromptTree
from stream_sttm.engine.answering.sequence import Completion, SequenceState
from stream_sttm.engine.attention import PrefixQueries, QueryHook
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.engine.recall.lookback import LookbackProbe
from stream_sttm.engine.recall.retrieval import RecallContext
from stream_sttm.engine.view import View
from stream_sttm.errors import NotFinite
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
        self._rows: list[SequenceState] = []
        self._failed: list[Completion] = []  # before they had a row; told with the next step
        self._weighed: list[SequenceState] = []  # rows whose options are being scored
        self._scoring: OptionScoring | None = None
        self._was_weighing = False  # in the last step
        self._tree = PromptTree(self._begin_rows(questions, formats, history))
        self._paths = self._tree.paths  # by row
        self._is_allocated = self._is_prefilled = self._is_decoding = False
        self._last = torch.empty(0)  # (B, C), hidden states of each question's last token
        self._next = torch.empty(0)

    def _begin_rows(
        self, questions: Sequence[Question], formats: AnswerFormats, history: str
    ) -> list[Sequence[int]]:
        """Begin a row for each question. Returns their prompts. What one fails on ends that one alone."""
        prompts: list[Sequence[int]] = []
        for question in questions:
            with alone(question, self._failed):
                ids, form = formats.prompt(question, history), question.form
                options, grammar = formats.options(form), formats.grammar(form)
                self._rows.append(SequenceState(question, len(ids), options, grammar))
                prompts.append(ids)
        return prompts

    @property
    def questions(self) -> list[Question]:
        """The questions without an answer so far."""
        rows = [*self._rows, *self._weighed]
        return [row.question for row in rows] + [one.question for one in self._failed]

    def partial_texts(self) -> list[tuple[Question, str]]:
        """Return the streamed questions whose answers are being written, each with its text so far."""
        texts: list[tuple[Question, str]] = []
        for row in self._rows:
            if row.ids and row.question.is_streamed:
                with alone(row.question, []):  # told at its end
                    # the bytes of a character may come one by one
                    text = self._model.answer(row.ids).rstrip("\ufffd")
                    texts.append((row.question, text))
        return texts

    def step(self) -> list[Completion]:
        """Read the next piece of the questions, or write one more token for each.

        Returns the answers that are finished now, and those that failed.
        """
        finished = self._advance()
        failed, self._failed = self._failed, []
        return [*failed, *finished]

    def _advance(self) -> list[Completion]:
        if not self._rows and self._scoring is None:
            return []
        if self.make_view is not None:
            self.view, self.make_view = self.make_view(), None
            return []
        if not self._is_allocated:
            self._allocate()
        if not self._is_prefilled:
            with stage("prefill"):
                return self._prefill()
        # Answers are written between the pieces of options, which may be many.
        if self._scoring is not None and not (self._was_weighing and self._rows):
            self._was_weighing = True
            with stage("prefill"):
                return self._weigh()
        self._was_weighing = False
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
        return self._choose_tokens(self._model.logits(hidden[:, -1]))

    def _prefill(self) -> list[Completion]:
        """Read the next piece of the prompts. After the last piece, choose each answer's first token.

        Returns the answers that are finished by it.
        """
        start, model = self._suffix.length, self._model
        end = min(len(self._tree), start + PIECE)
        piece = self._tree.piece(start, end, len(model.layers), model.device)
        query_hook = partial(self._probe.observe, piece.last, piece.ends) if self._probe else None
        hidden = self._run_piece(piece, self._suffix, query_hook)
        last = hidden[0, piece.last]
        self._last = torch.where(piece.ends[:, None], last, self._last) if start else last
        if end < len(self._tree):
            return []
        self._is_prefilled = True
        self._split_lookback()
        return self._choose_first() if self._rows else []

    def _run_piece(
        self, piece: Piece, suffix: SuffixCache, query_hook: QueryHook | None = None
    ) -> Tensor:
        """Run a piece of the tree, whose earlier nodes are in `suffix`, through all layers. Returns (1, n, C)."""
        mask = torch.zeros(piece.sees.shape, dtype=self._model.dtype, device=self._model.device)
        mask.masked_fill_(~piece.sees, -torch.inf)
        suffix.visible = piece.before
        return self._run_layers(
            piece.ids[None],
            piece.depths[None],
            mask[None, None],
            suffix,
            query_hook,
            piece.prefix_queries,
        )

    def _begin_decoding(self) -> None:
        """Give each question its own keys and values, with room for its answer."""
        device = self._model.device
        longest = max(len(path) for path in self._paths)
        room = max(question.max_new_tokens for question in (row.question for row in self._rows))
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

    def _choose_first(self) -> list[Completion]:
        """Choose each answer's first token. Options that begin alike are left to be weighed in steps of their own.

        Returns the answers that are finished now.
        """
        logits = self._model.logits(self._last)
        rows = range(len(self._rows))
        weighed = [index for index in rows if self._rows[index].begins_alike]
        if weighed:
            self._begin_weighing(weighed, logits[weighed])
            others = [index for index in rows if index not in weighed]
            logits = logits[others]
            self._keep_rows(others)
        return self._choose_tokens(logits) if self._rows else []

    def _choose_tokens(self, logits: Tensor) -> list[Completion]:
        """Choose each row's next token from logits (B, V). Returns the answers that are finished by it, with those
        that failed, and removes their rows.
        """
        finished: list[Completion] = []
        is_finite = logits.amax(dim=-1).isfinite()
        self._mask_refused(logits, finished)
        chosen = logits.argmax(dim=-1)
        logs = (logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)).tolist()
        weights = first_weights(
            [row.options for row in self._rows], logits, self._model.tuned.temperature
        )
        failed, open_rows = {id(one.question) for one in finished}, []
        # Only here does answering wait for the device: which rows are finished decides what runs next.
        each = zip(self._rows, chosen.tolist(), is_finite.tolist(), strict=True)
        for index, (row, token, is_sound) in enumerate(each):
            if id(row.question) in failed:
                continue
            with alone(row.question, finished):
                if not is_sound:
                    raise NotFinite
                if index in weights:
                    done: Completion | None = row.complete_choice(weights[index], self.view)
                else:
                    done = row.take(token, logs[index], self._model, self.view)
                if done is None:
                    open_rows.append(index)
                else:
                    finished.append(done)
        self._next = chosen[open_rows]
        self._keep_rows(open_rows)
        return finished

    def _mask_refused(self, logits: Tensor, failed: list[Completion]) -> None:
        """Set what a row's grammar refuses to minus infinity. Rows whose grammar fails are added to `failed`."""
        for index, row in enumerate(self._rows):
            if row.grammar is None:
                continue
            allowed: Tensor | None = None
            with alone(row.question, failed):
                allowed = row.grammar.allowed()
            if allowed is not None:
                logits[index].masked_fill_(~allowed.to(logits.device), -torch.inf)

    def _begin_weighing(self, indices: Sequence[int], logits: Tensor) -> None:
        """Have the options of these rows scored. Logits (R, V) are the first token's."""
        self._weighed = [self._rows[index] for index in indices]
        self._scoring = OptionScoring(
            self._model,
            self._tree,
            self._suffix,
            [self._paths[index] for index in indices],
            [row.options for row in self._weighed if row.options is not None],
            logits,
        )

    def _weigh(self) -> list[Completion]:
        """Read the next piece of the options. Returns the answers of all weighed rows after the last piece."""
        scoring = self._scoring
        assert scoring is not None
        scoring.read(PIECE, self._run_piece)
        if not scoring.is_done:
            return []
        finished: list[Completion] = []
        each = scoring.weights(self._model.tuned.temperature)
        for row, weights in zip(self._weighed, each, strict=True):
            with alone(row.question, finished):
                finished.append(row.complete_choice(weights, self.view))
        self._scoring, self._weighed = None, []
        return finished

    def _keep_rows(self, indices: list[int]) -> None:
        """Keep only the rows with these indices."""
        if self._is_decoding and 0 < len(indices) < len(self._rows):
            rows = torch.tensor(indices, device=self._model.device)
            self._suffix.keep_rows(rows)
            self._lengths, self._is_real = self._lengths[rows], self._is_real[rows]
        self._rows = [self._rows[index] for index in indices]
        self._paths = [self._paths[index] for index in indices]
