"""VideoLLM: everything that the engine may ask of a model, over transformers' own unpatched classes.

A family knows how frames become features, how a chat is cut into preamble and question, and where tokens stand. It does
not know caches, merging or streams. The engine runs `layers` itself.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from stream_sttm.errors import ModelError, UnsupportedModel
from stream_sttm.models.layout import cache_argument, check_layout
from stream_sttm.visual_tokens import VisualTokens

_QUESTION = "\x1aquestion\x1a"  # stands for it while the chat template is cut; no tokenizer input
_SAMPLED = 64  # values of each weight that a fingerprint looks at, about


@dataclass(frozen=True, slots=True)
class Defaults:
    """What serves a family, or one checkpoint, best. The configuration can set most of these values instead.

    - `spatial_threshold`, `temporal_threshold`: those of the STTM reducers.
    - `at_layer`, `size_bias`, `fresh_frames`: as in the settings.
    - `positions`: "own" keeps the position that a visual token would have unmerged, "contiguous" renumbers the
      survivors.
    - `horizon`: the positions that a memory may span.
    - `instruct`: whether a question ends with an instruction about the format of its answer.
    - `temperature`: divides log-probabilities of options before they become a confidence, so that this is calibrated
      (https://arxiv.org/abs/1706.04599).
    - `recall_from`: the least share of its attention that a question about the past pays to what is not visible any
      more.

    A checkpoint may bring its own values under the key `stream_sttm` of its config.json.
    """

    spatial_threshold: float = 0.85
    temporal_threshold: float = 0.65
    at_layer: int = 2
    size_bias: float = 0.0
    fresh_frames: int = 1
    positions: Literal["own", "contiguous"] = "own"
    horizon: int | None = None
    instruct: bool = True
    temperature: float = 1.0
    recall_from: float = 0.55


class VideoLLM(ABC):
    """A loaded video LLM."""

    defaults: ClassVar[Defaults]
    axes: ClassVar[int] = 1
    frames_per_token: ClassVar[int] = 1

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, processor: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.processor = processor
        self._model = model
        self.config = model.config
        self.core = model.model
        self.text = model.model.language_model
        self.head: nn.Module = model.lm_head
        self.tokenizer = tokenizer
        self.device: torch.device = self.text.embed_tokens.weight.device
        self.dtype: torch.dtype = self.text.embed_tokens.weight.dtype
        self.tuned = _tuned(self.defaults, self.config)
        self.eos = _eos(model)
        self.cache_argument = cache_argument(self.text.layers[0])
        self._before, self._opening, self._closing = self._cut_template()

    @classmethod
    def load(cls, source: str, *, name: str, device: str, dtype: str) -> Self:
        """Load a checkpoint of this family. Raises ModelError or UnsupportedModel."""
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        torch_device = _device(device)
        torch_dtype = _dtype(dtype, torch_device)
        model: Any
        try:
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch_dtype)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            first = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise ModelError(f"model {name!r} can't be loaded: {first}") from error
        model = model.to(torch_device).eval().requires_grad_(False)
        check_layout(model.model.language_model, name)
        return cls(model, tokenizer, name=name, processor=_processor(source))

    # the decoder

    def use_attention(self, name: str) -> None:
        """Let the decoder's layers call the attention function that is registered with transformers as `name`."""
        self._model.set_attn_implementation({"text_config": name})

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers: nn.ModuleList = self.text.layers
        return layers

    @cached_property
    def fingerprint(self) -> str:
        """A hash that tells this checkpoint and dtype from others: of names, shapes, and some values of each weight."""
        digest = hashlib.blake2b(f"{type(self).__name__} {self.dtype}".encode(), digest_size=16)
        for name, weight in self._model.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            step = max(1, weight.numel() // _SAMPLED)
            some = weight.detach().reshape(-1)[::step].float().cpu()
            digest.update(some.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """How many weights the whole model has, vision included."""
        return sum(weight.numel() for weight in self._model.parameters())

    @property
    def kv_shape(self) -> tuple[int, int]:
        """Key-value heads and head dimension of a layer."""
        config = self.text.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return config.num_key_value_heads, width

    @property
    def vocabulary(self) -> int:
        """Length of the logits."""
        return int(self.text.config.vocab_size)

    @property
    def context(self) -> int:
        """Positions that the decoder was configured for."""
        return int(self.text.config.max_position_embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits (B, vocabulary) of hidden states (B, C) after the last layer."""
        logits: Tensor = self.head(self.text.norm(hidden))
        return logits.float()

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each (B, N, D), for `positions` (axes, B, N), in the dtype of `hidden`."""
        cos, sin = self.text.rotary_emb(hidden, positions[0] if self.axes == 1 else positions)
        return cos, sin

    def turn(self, shift: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (D,), from float64 angles, that move a key by `shift` positions along the time
        axis.
        """
        angles = shift * self._time_frequencies().to(torch.float64)
        angles = torch.cat([angles, angles])
        return angles.cos().float(), angles.sin().float()

    def _time_frequencies(self) -> Tensor:
        """Return (D / 2,) radians per position of the time axis, zero where another axis rotates."""
        frequencies: Tensor = self.text.rotary_emb.inv_freq
        return frequencies

    def own_logits(self, ids: Tensor) -> Tensor:
        """Return float32 logits (B, N, vocabulary) of token ids (B, N) by transformers' own forward pass."""
        out: Any = self._model(input_ids=ids, use_cache=False)
        logits: Tensor = out.logits
        return logits.float()

    # vision

    @abstractmethod
    def preprocess(self, frames: Tensor) -> Any:
        """Turn frames (T, 3, H, W) uint8, on the model's device, into what `encode` takes."""

    @abstractmethod
    def encode(self, pixels: Any) -> Tensor:
        """Run vision tower and projector.

        Returns features (T', H', W', C), where T' is T / frames_per_token rounded up.
        """

    def encode_regions(
        self, pixels: Any, changed: Tensor | None, kept: Any | None
    ) -> tuple[Tensor, Any | None]:
        """Encode only the cells `changed` (H', W') of every token frame, and take the others from `kept`.

        Returns features as `encode` does, and the state that is `kept` for the next clip. All is encoded where `kept`
        is None. This family can't encode parts: it encodes all and keeps nothing.
        """
        del changed, kept
        return self.encode(pixels), None

    # positions

    @abstractmethod
    def own_positions(self, tokens: VisualTokens, grid: tuple[int, int], step: float) -> Tensor:
        """Return positions (axes, N) int64 that `tokens` would have unmerged, counted from the first visual token.

        `grid` is a frame's (H', W'). `step` is how many positions two frames are apart on the time axis, for multi-axis
        models.
        """

    @abstractmethod
    def own_time(self, frame: int, grid: tuple[int, int], step: float) -> int:
        """Return where frame number `frame` begins on the time axis, counted from the first visual token."""

    def text_start(self, frames: int, grid: tuple[int, int], step: float, origin: int) -> int:
        """Return where text begins on the time axis behind `frames` frames, of which the oldest kept begins at
        `origin`.
        """
        del origin
        return self.own_time(frames, grid, step)

    def step(self, fps: float) -> float:
        """Return how many positions two token frames are apart for a stream sampled at `fps`.

        It is 1 where frames are counted.
        """
        del fps
        return 1.0

    # text

    def embed(self, ids: Tensor) -> Tensor:
        """Return decoder inputs (B, N, C) for token ids (B, N)."""
        embedded: Tensor = self.text.embed_tokens(ids)
        return embedded

    def preamble(self) -> list[int]:
        """Return the token ids of everything before the first visual token, which is the pinned prefix."""
        return list(self._before)

    def ask(self, text: str, turns: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Return the token ids of everything after the last visual token: video end, question, assistant header.

        `turns`: earlier questions and their answers. All of it is plain text, so words that look like special tokens
        stay words.
        """
        if not turns:
            return [*self._opening, *self._tokenize(text), *self._closing]
        texts = [*(part for turn in turns for part in turn), text]
        opening, *between = self._template(len(turns))
        ids = [*self._video_end(), *self._ids(opening)]
        for part, after in zip(texts, between, strict=True):
            ids += [*self._tokenize(part), *self._ids(after)]
        return ids

    def answer(self, ids: list[int]) -> str:
        """Return the text of an answer's token ids."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    @property
    @abstractmethod
    def visual_word(self) -> str:
        """What the chat template writes in place of the video's tokens."""

    def _cut_template(self) -> tuple[list[int], list[int], list[int]]:
        """Return token ids before the video, between video and question, and after the question."""
        before, opening, closing = self._chat(0)
        return self._ids(before), [*self._video_end(), *self._ids(opening)], self._ids(closing)

    def _template(self, turns: int) -> list[str]:
        """Return what the chat template writes behind the video, cut where questions and answers go."""
        return self._chat(turns)[1:]

    def _chat(self, turns: int) -> list[str]:
        """Return a chat with so many turns before its last question, cut at the video and at every text.

        Raises UnsupportedModel where the template does not put the video before the text.
        """
        content = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for _ in range(turns):
            messages += [
                {"role": role, "content": [{"type": "text", "text": _QUESTION}]}
                for role in ("assistant", "user")
            ]
        chat: str = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        before, found, rest = chat.partition(self.visual_word)
        parts = rest.split(_QUESTION)
        if not found or len(parts) != len(messages) + 1:
            raise UnsupportedModel(
                f"model {self.name!r}: its chat template does not put a video ({self.visual_word}) before the text"
            )
        return [before, *parts]

    def _tokenize(self, text: str) -> list[int]:
        """Return the token ids of plain text."""
        ids: list[int] = self.tokenizer(
            text.strip(), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def _video_end(self) -> list[int]:
        """Return the token ids that a family puts right behind the last frame."""
        return []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids


def _tuned(defaults: Defaults, config: Any) -> Defaults:
    """Return the family's defaults, with the values that the checkpoint's own config sets."""
    given = getattr(config, "stream_sttm", None) or {}
    known = {field.name for field in fields(Defaults)}
    if unknown := sorted(set(given) - known):
        raise ModelError(f"config.json: stream_sttm has unknown keys {', '.join(unknown)}")
    values = {field.name: getattr(defaults, field.name) for field in fields(Defaults)}
    return Defaults(**{**values, **given})


def _processor(source: str) -> Mapping[str, Any]:
    """Return the checkpoint's image settings (image_mean, image_std, size), empty where it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return {}
    settings: Mapping[str, Any] = found
    return settings


def _eos(model: Any) -> frozenset[int]:
    """Return every token id that ends an answer."""
    ids: set[int] = set()
    for config in (model.generation_config, model.config, model.config.text_config):
        found = getattr(config, "eos_token_id", None)
        ids.update([found] if isinstance(found, int) else found or [])
    return frozenset(ids)


def _device(name: str) -> torch.device:
    if name == "auto":
        kinds = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        name = next((kind for kind, there in kinds if there), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} can't be used here; try 'auto' or 'cpu'") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
