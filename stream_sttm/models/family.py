"""VideoLLM: everything the engine may ask of a model, over transformers' own unpatched classes.

A family says how frames become features, how a chat is cut into preamble and question, and where tokens sit. It does
not know caches, merging or streams; the engine walks `layers` itself.
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
from stream_sttm.visual_tokens import VisualTokens

_QUESTION = "\x1aquestion\x1a"  # stands for it while the chat template is cut; no tokenizer input
_SAMPLED = 64  # values of each weight that a fingerprint looks at, about


@dataclass(frozen=True, slots=True)
class Defaults:
    """What serves a family, or one checkpoint, best; every value can be set in the configuration instead.

    `positions`: "own" keeps for each visual token the position it would have unmerged, "contiguous" renumbers the
    survivors. `horizon`: the positions a memory may span. `at_layer`, `size_bias`, `fresh_frames` as in the settings.
    `instruct`: whether a question is told which form of answer is wanted. `temperature` divides log-probabilities of
    options before they become a confidence, so that this is as often right as it says (https://arxiv.org/abs/1706.04599).
    `recall_from`: a question asks of the past that pays at least this share of its attention to what is there no more.
    A checkpoint may bring its own under the key `stream_sttm` of its config.json.
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
        self._before, self._opening, self._closing = self._cut_template()

    @classmethod
    def load(cls, source: str, *, name: str, device: str, dtype: str) -> Self:
        """Read a checkpoint of this family; raises ModelError or UnsupportedModel."""
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
        _check_layout(model.model.language_model, name)
        return cls(model, tokenizer, name=name, processor=_processor(source))

    # the decoder

    def use_attention(self, name: str) -> None:
        """Have the decoder's layers call the attention function registered with transformers as `name`."""
        self._model.set_attn_implementation({"text_config": name})

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers: nn.ModuleList = self.text.layers
        return layers

    @cached_property
    def fingerprint(self) -> str:
        """Tells this checkpoint, in this number format, from others: names, shapes, some of each weight."""
        digest = hashlib.blake2b(f"{type(self).__name__} {self.dtype}".encode(), digest_size=16)
        for name, weight in self._model.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            step = max(1, weight.numel() // _SAMPLED)
            some = weight.detach().reshape(-1)[::step].float().cpu()
            digest.update(some.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """Weights of the whole model, vision included."""
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
        """(B, C) hidden states after the last layer -> (B, vocabulary) logits, float32."""
        logits: Tensor = self.head(self.text.norm(hidden))
        return logits.float()

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (B, N, D), for `positions` (axes, B, N), in the dtype of `hidden`."""
        cos, sin = self.text.rotary_emb(hidden, positions[0] if self.axes == 1 else positions)
        return cos, sin

    def turn(self, shift: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (D,), from float64 angles, that move a key by `shift` positions along the time axis."""
        angles = shift * self._time_frequencies().to(torch.float64)
        angles = torch.cat([angles, angles])
        return angles.cos().float(), angles.sin().float()

    def _time_frequencies(self) -> Tensor:
        """(D / 2,) radians per position of the time axis, zero where another axis rotates."""
        frequencies: Tensor = self.text.rotary_emb.inv_freq
        return frequencies

    # vision

    @abstractmethod
    def preprocess(self, frames: Tensor) -> Any:
        """(T, 3, H, W) uint8 on the model's device -> whatever `encode` takes."""

    @abstractmethod
    def encode(self, pixels: Any) -> Tensor:
        """Vision tower and projector: features (T', H', W', C), T' = T / frames_per_token rounded up."""

    def encode_regions(
        self, pixels: Any, changed: Tensor | None, kept: Any | None
    ) -> tuple[Tensor, Any | None]:
        """As `encode`, but only for the cells `changed` (H', W') of every token frame; the others are as in `kept`.

        `kept` is what the call for the clip before gave beside the features, None where all is to be encoded. A family
        that can't, like this one, encodes all and keeps nothing.
        """
        del changed, kept
        return self.encode(pixels), None

    # positions

    @abstractmethod
    def own_positions(self, tokens: VisualTokens, grid: tuple[int, int], step: float) -> Tensor:
        """(axes, N) int64 positions that `tokens` would have unmerged, counted from the first visual token.

        `grid` is a frame's (H', W'); `step` the positions between two frames on the time axis of a multi-axis model.
        """

    @abstractmethod
    def own_time(self, frame: int, grid: tuple[int, int], step: float) -> int:
        """Where frame number `frame` begins on the time axis, counted from the first visual token."""

    def text_start(self, frames: int, grid: tuple[int, int], step: float, origin: int) -> int:
        """Where text goes on the time axis behind `frames` frames, of which the oldest kept begins at `origin`."""
        del origin
        return self.own_time(frames, grid, step)

    def step(self, fps: float) -> float:
        """Positions between two token frames of a stream sampled at `fps`; 1 where frames are counted."""
        del fps
        return 1.0

    # text

    def embed(self, ids: Tensor) -> Tensor:
        """(B, N) token ids -> (B, N, C) decoder inputs."""
        embedded: Tensor = self.text.embed_tokens(ids)
        return embedded

    def preamble(self) -> list[int]:
        """Token ids of everything before the first visual token: the pinned prefix."""
        return list(self._before)

    def ask(self, text: str, turns: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of everything after the last visual token: vision end, question, assistant opening.

        `turns`: questions and answers that went before. All of it is plain text: words that look like special tokens
        stay words.
        """
        if not turns:
            return [*self._opening, *self._words(text), *self._closing]
        said = [*(part for turn in turns for part in turn), text]
        opening, *between = self._template(len(turns))
        ids = [*self._video_end(), *self._ids(opening)]
        for words, after in zip(said, between, strict=True):
            ids += [*self._words(words), *self._ids(after)]
        return ids

    def answer(self, ids: list[int]) -> str:
        """The text of an answer's token ids."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    @property
    @abstractmethod
    def visual_word(self) -> str:
        """What the chat template writes where the video's tokens go."""

    def _cut_template(self) -> tuple[list[int], list[int], list[int]]:
        """Token ids before the video, between video and question, and after the question."""
        before, opening, closing = self._chat(0)
        return self._ids(before), [*self._video_end(), *self._ids(opening)], self._ids(closing)

    def _template(self, turns: int) -> list[str]:
        """What the chat template writes behind the video, cut where questions and answers go."""
        return self._chat(turns)[1:]

    def _chat(self, turns: int) -> list[str]:
        """A chat with so many turns before its last question, cut at the video and at every text."""
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

    def _words(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ids: list[int] = self.tokenizer(
            text.strip(), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def _video_end(self) -> list[int]:
        """Token ids that a family puts right behind the last frame."""
        return []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids


def _tuned(defaults: Defaults, config: Any) -> Defaults:
    """The family's defaults with what the checkpoint's own config says of them."""
    given = getattr(config, "stream_sttm", None) or {}
    known = {field.name for field in fields(Defaults)}
    if unknown := sorted(set(given) - known):
        raise ModelError(f"config.json: stream_sttm has unknown keys {', '.join(unknown)}")
    values = {field.name: getattr(defaults, field.name) for field in fields(Defaults)}
    return Defaults(**{**values, **given})


def _processor(source: str) -> Mapping[str, Any]:
    """What the checkpoint says of its pictures (image_mean, image_std, size), empty where it says nothing."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return {}
    settings: Mapping[str, Any] = found
    return settings


def _eos(model: Any) -> frozenset[int]:
    """Every id that ends an answer."""
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


def _check_layout(text: Any, name: str) -> None:
    """Refuse decoders whose layers our loop would run wrongly."""
    kinds = set(getattr(text.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnsupportedModel(
            f"model {name!r} has layers of kind {', '.join(sorted(kinds))}; only full attention runs"
        )
    rotary = getattr(text.config, "rope_parameters", None) or {}
    rope = rotary.get("rope_type", "default")
    is_of_one_length = rope == "longrope" and rotary["short_factor"] == rotary["long_factor"]
    if rope in ("dynamic", "longrope") and not is_of_one_length:
        raise UnsupportedModel(
            f"model {name!r} scales its rotary embedding with length ({rope}), which a rolling cache can't follow"
        )
