"""The model while it learns: with the heads that read labels off its tokens, which nobody ships."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_sttm.demo.architecture import Batch, Packed, untrained
from stream_sttm.demo.dataset import LABELS
from stream_sttm.demo.tokenizer import TEMPLATE, USER, VISION_START, build_tokenizer

COMMON = 0.15  # weight of a label's class 0, "nothing here", which most tokens have
# Where each label is read: -1 behind the vision tower, else behind that decoder layer.
READ_AT = {
    "shape": -1, "colour": -1, "row": 0, "column": 0, "motion": 1,
    "left_shape": 2, "left_colour": 2, "left_last": 3, "came_last": 3, "name": 1, "left_name": 3,
}  # fmt: skip


class Trainee(nn.Module):
    """The model with the heads that only training has."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.model = untrained(self.tokenizer, seed)
        width = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, count) for name, count in LABELS.items()}
        )
        before = TEMPLATE.partition("{")[0] + USER + VISION_START
        ids = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        self.packed = Packed(self.model, ids)

    def forward(
        self, batch: Batch, *, is_asked: bool, labels: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one batch, its labels weighing so much, with its parts as numbers."""
        seen = self.packed.see(batch.patches)
        hidden, answers = [seen.reshape(*batch.times.shape, *seen.shape[1:])], torch.zeros(())
        losses: dict[str, float] = {}
        if is_asked:
            text, after = self.packed(batch, seen)
            hidden += after
            answers, right = self.packed.loss(batch, text)
            losses["answers"] = answers.item()
            losses["right"] = _exact(batch, right)
        taught = [
            self._label_loss(name, hidden[at + 1], batch.labels[name])
            for name, at in READ_AT.items()
            if at + 1 < len(hidden)
        ]
        losses["labels"] = sum(loss.item() for loss in taught) / len(taught)
        return answers + labels * torch.stack(taught).sum(), losses

    def _label_loss(self, name: str, hidden: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.heads[name](F.rms_norm(hidden, hidden.shape[-1:]))
        weight = None
        if name not in ("row", "column"):
            weight = torch.ones(LABELS[name], device=hidden.device)
            weight[0] = COMMON
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight)


def _exact(batch: Batch, right: Tensor) -> float:
    """Share of questions whose whole answer, its end included, is the likeliest one."""
    wrong = {(row, batch.owner[row, at].item()) for row, at in (~right).nonzero().tolist()}
    asked = sum(len(set(owners.tolist()) - {-1}) for owners in batch.owner)
    return 1 - len(wrong) / max(1, asked)
