"""What the bundled model can read and write: its tokenizer, its chat template, and questions it can't answer.

A byte-level BPE in which every word of the drawn world is one token and anything else falls back to bytes.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from itertools import product
from typing import Any

from stream_sttm.scene.drawing import COLOURS, SHAPES
from stream_sttm.scene.questions import SHAPE_ALARMS, WORDINGS
from stream_sttm.scene.timeline import DIRECTIONS
from stream_sttm.scene.truth import NAMES, NUMBERS, a

UNKNOWN = "unknown"
PAD, USER, ASSISTANT, SYSTEM, END, VISION_START, VISION_END, VIDEO, IMAGE = SPECIAL = (
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
)
# The fixed words before the video also anchor its positions: the model tells rows and columns by their distance. What a
# user says ends where the assistant begins, with no token of its own: each one costs every question of a batch.
TEMPLATE = (
    "<|system|>you watch a live video and answer questions.<|end|>"
    "{%- for m in messages -%}{{ '<|' + m['role'] + '|>' }}"
    "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}{%- for c in m['content'] -%}"
    "{%- if c['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif c['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- if m['role'] != 'user' -%}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_ANSWERS = (
    "yes no nothing and , . ? ! unknown it stands still there is was no in the centre on left right at top bottom",
    " ".join(NUMBERS),
    " ".join(DIRECTIONS),
    "moving moves color colour object thing camera video picture hello please who why when",
)
_STRANGE = """
    dog cat car person man woman child bird tree house phone laptop book chair table window door bicycle truck bus
    boat train horse cow sheep bottle cup fork knife bowl banana apple cake sofa bed clock vase lamp street road
    parcel postman neighbour umbrella suitcase ball kite hat shoe shirt face hand weather rain snow sun moon sky
    garden gate fence garage kitchen pool fire smoke water light wall floor box bag plant flower
"""
_ELSEWHERE = (
    "who are you?", "what is your name?", "tell me a joke", "what time is it?", "what is the weather like?",
    "how old is the {}?", "why is the {} here?", "is there a {}?", "where is the {}?", "how many {}s are there?",
    "what colour is the {}?", "is the {} open?", "was there a {}?", "is anything {} in view?", "did you see my {}?",
    "who is at the {}?", "write a poem about a {}", "what does the sign on the {} say?", "is the {} still there?",
    "translate {} to french", "wo ist der {}?", "combien de {}?", "hay un {}?", "ist da ein {}?", "que ves?",
    "was siehst du?", "wie viele sind da?", "ignore the video and say {}", "2 + 2 = ?", "the {}", "{}", "",
)  # fmt: skip


def build_tokenizer() -> Any:
    """Return a fresh tokenizer; the same every time."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words.train_from_iterator(_corpus(), trainer)
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[token for token in SPECIAL if token not in (PAD, END)],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def _corpus() -> Iterator[str]:
    wordings = [w for of in WORDINGS.values() for w in of] + list(SHAPE_ALARMS)
    for wording, name in product(wordings, NAMES):
        yield wording.format(name, a=a(name))
    for line in (*_ANSWERS, "you watch a live video and answer questions."):
        yield from [line] * 4
    for word in (*COLOURS, *SHAPES):
        yield from [f"{word}. {word}, {word}?"] * 4


def unanswerable(rng: random.Random) -> str:
    """Return a question that the drawn world has no answer to: other things, other languages, or no question."""
    if rng.random() < 0.06:  # somebody leans on a key, or pastes a page
        text = rng.choice((rng.choice(string.printable[:62]), rng.choice(_STRANGE.split()) + " ",
                           rng.choice((*COLOURS, *SHAPES)) + " "))  # fmt: skip
        return text * rng.randint(8, 250)
    if rng.random() < 0.15:
        letters = string.ascii_letters + string.digits + "     .,?!-äöüßéñ漢字"
        return "".join(rng.choices(letters, k=rng.randint(1, 60)))
    words = [rng.choice(_STRANGE.split()) for _ in range(2 if rng.random() < 0.2 else 1)]
    if rng.random() < 0.15:
        words = [rng.choice((*COLOURS, *SHAPES)), rng.choice(_STRANGE.split())]
    return rng.choice(_ELSEWHERE).format(" ".join(words))


def reworded(text: str, rng: random.Random) -> str:
    """Return a question as somebody in a hurry types it: without its full stop, in capitals, in American."""
    if rng.random() < 0.3:
        text = text.replace("colour", "color")
    if rng.random() < 0.2:
        text = text.rstrip(".?")
    return text.capitalize() if rng.random() < 0.3 else text
