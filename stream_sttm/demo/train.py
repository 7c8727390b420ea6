"""Trains the bundled model from nothing: `python -m stream_sttm.demo.train --out FOLDER [--seed N] [--processes N]`.

Four stages: what single frames show, questions about one moment, about looks of up to four minutes, about looks of as
many frames as a memory holds. Only unmerged input is ever shown. Labels per token teach besides (what is here, what
left from here); their heads are thrown away. Interrupted, the same command goes on where it stopped: every batch is a
function of seed and number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from tqdm import tqdm

from stream_sttm.demo.architecture import SIDE
from stream_sttm.demo.dataset import LASTS, WATCHED, Dataset
from stream_sttm.demo.trainee import Trainee

SAVE_EVERY, WATCH_EVERY = 100, 300
WEIGHT_DECAY, BETAS, CLIP = 0.03, (0.9, 0.98), 1.0
# What serves the finished checkpoint best, by bench/accuracy.py; shipped in its config.json.
SERVES_BEST = {
    "spatial_threshold": 0.9,
    "temporal_threshold": 0.9,
    "at_layer": 4,
    "size_bias": 0.0,
    "fresh_frames": 1,
    "positions": "own",
    "horizon": 480,
    "instruct": False,
}
MATRIX_RATE = 2.5  # of the learning rate, for Muon's matrices


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum; `frames` are the lengths of looks in pairs, `budget` pairs to a process's batch."""

    name: str
    steps: int
    peak: float
    last: float
    frames: tuple[int, ...]
    budget: int
    asked: int
    labels: tuple[float, float]


CURRICULUM = (
    Stage("frames", 650, 2e-3, 1.5e-3, (1,), 48, 0, (1.0, 1.0)),
    Stage("moments", 700, 1.5e-3, 1.5e-3, (1, 1, 2), 32, 128, (0.5, 0.5)),
    Stage("looks", 2300, 1.5e-3, 2e-5, (1, 2, 3, 4, 6, 8, 8, 12, 16), 48, 96, (0.5, 0.05)),
    Stage("memories", 800, 5e-4, 1e-5, (4, 12, 20, 28, 40, 52, 64), 64, 96, (0.5, 0.05)),
)
WARM_UP = 80
MOST_ASKED = 32  # questions about one look


def curriculum(share: float) -> tuple[Stage, ...]:
    """Return the curriculum, or a trial of it with so small a share of the steps."""
    return tuple(replace(stage, steps=max(1, round(share * stage.steps))) for stage in CURRICULUM)


def place(step: int, stages: Sequence[Stage]) -> tuple[Stage, float]:
    """Return the stage that a step belongs to, and how much of it is done."""
    for stage in stages:
        if step < stage.steps:
            return stage, step / stage.steps
        step -= stage.steps
    raise ValueError("the curriculum is over")


def rate(stage: Stage, done: float, step: int) -> float:
    """Return the learning rate: from peak to last along half a cosine, after a warm-up at the very start."""
    fall = 0.5 * (1 + math.cos(math.pi * done))
    return (stage.last + (stage.peak - stage.last) * fall) * min(1.0, (step + 1) / WARM_UP)


def _optimizers(pupil: Trainee) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (https://arxiv.org/abs/2502.16982), AdamW for everything else."""
    inner = {
        id(weight)
        for name, weight in pupil.model.named_parameters()
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name
    }
    matrices = [weight for weight in pupil.parameters() if id(weight) in inner]
    others = [weight for weight in pupil.parameters() if id(weight) not in inner]
    return [
        torch.optim.Muon(
            [{"params": matrices, "scale": MATRIX_RATE}],
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": others, "scale": 1.0}], betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        ),
    ]


class Run:
    """One process of a training run; `rank` 0 saves and reports."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self.rank, self.options = rank, options
        self.stages = curriculum(options.share)
        self.device = torch.device(options.device)
        self.pupil = Trainee(options.seed).to(self.device)
        self.weights = [w for w in self.pupil.parameters() if w.requires_grad]
        self.optimizers = _optimizers(self.pupil)
        self.school = Dataset(self.pupil.tokenizer, seed=options.seed * 1000 + rank)
        self.state = Path(options.out) / "run.pt"
        self.step = 0
        if self.state.exists():
            saved = torch.load(self.state, map_location=self.device, weights_only=True)
            self.pupil.load_state_dict(saved["pupil"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step = saved["step"]

    def train(self, until: int | None = None) -> None:
        """From where the run stands to the end of the curriculum, or to step `until`."""
        end = sum(stage.steps for stage in self.stages)
        total = end if until is None else min(until, end)
        with tqdm(total=total, initial=self.step, disable=self.rank > 0, mininterval=5) as bar:
            while self.step < total:
                stage, done = place(self.step, self.stages)
                losses: dict[str, float] = self._learn(stage, done)
                self.step += 1
                bar.update()
                bar.set_postfix({"stage": stage.name, **{k: f"{v:.3f}" for k, v in losses.items()}})
                if self.rank == 0 and (self.step % SAVE_EVERY == 0 or self.step == total):
                    self._save()
                if self.rank == 0 and (self.step % WATCH_EVERY == 0 or self.step == total):
                    self._log({"step": self.step, **losses, **self.watch(stage)})
        if self.rank == 0 and total == end:
            ship(self.pupil, Path(self.options.out) / "model")

    def _learn(self, stage: Stage, done: float) -> dict[str, float]:
        frames = stage.frames[hash((self.options.seed, self.step)) % len(stage.frames)]
        clips = max(1, stage.budget // frames)
        batch = self.school.batch(
            self.step, clips=clips, frames=frames, asked=min(MOST_ASKED, stage.asked // clips)
        ).to(self.device)
        first, last = stage.labels
        loss, losses = self.pupil(
            batch,
            is_asked=bool(stage.asked),
            labels=first + (last - first) * min(1.0, done / 0.7),
        )
        self.pupil.zero_grad()
        loss.backward()
        self._average()
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * rate(stage, done, self.step)
            optimizer.step()
        return dict(losses)

    def _average(self) -> None:
        """Gradients averaged over all processes."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.options.processes > 1:
            flat = nn.utils.parameters_to_vector(
                [w.grad for w in self.weights if w.grad is not None]
            )
            dist.all_reduce(flat)
            flat /= self.options.processes
            first = 0
            for weight in self.weights:
                weight.grad = flat[first : first + weight.numel()].view_as(weight)
                first += weight.numel()

    @torch.no_grad()
    def watch(self, stage: Stage) -> dict[str, Any]:
        """Exact answers on scenes nobody learns from, by kind."""
        if not stage.asked:
            return {}
        school = Dataset(self.pupil.tokenizer, seed=77, scenes=WATCHED)
        asked, good = Counter[str](), Counter[str]()
        for frames in sorted(set(stage.frames)):
            clips = max(1, stage.budget // 2 // frames)
            batch = school.batch(frames * LASTS, clips=clips, frames=frames, asked=14).to(
                self.device
            )
            text, _ = self.pupil.packed(batch, self.pupil.packed.see(batch.patches))
            _, right = self.pupil.packed.loss(batch, text)
            for row, questions in enumerate(school.asked):
                for number, question in enumerate(questions):
                    asked[question.kind] += 1
                    good[question.kind] += bool(right[row][batch.owner[row] == number].all())
        kinds = {kind: round(good[kind] / asked[kind], 3) for kind in sorted(asked)}
        return {
            "exact": round(good.total() / asked.total(), 4),
            "asked": asked.total(),
            "kinds": kinds,
        }

    def _log(self, losses: dict[str, Any]) -> None:
        with (Path(self.options.out) / "progress.jsonl").open("a") as file:
            file.write(json.dumps({"at": round(time.time()), **losses}) + "\n")

    def _save(self) -> None:
        fresh = self.state.with_suffix(".new")
        torch.save(
            {
                "pupil": self.pupil.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
            },
            fresh,
        )
        fresh.replace(self.state)


def ship(pupil: Trainee, folder: Path) -> None:
    """Write the checkpoint: fp16 weights, tokenizer, chat template, what its pictures must be."""
    model = pupil.model
    model.config.stream_sttm = SERVES_BEST
    model.to(torch.float16).save_pretrained(folder)
    model.to(torch.float32)
    pupil.tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    side = SIDE * SIDE
    settings = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": side, "longest_edge": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _process(rank: int, options: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    if options.processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=options.processes
        )
    Run(options, rank).train()
    if options.processes > 1:
        dist.destroy_process_group()


def main() -> int:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the run and its result")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    cores = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    parser.add_argument("--processes", type=int, default=cores, help="one per core is fastest")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps, for a trial")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if options.processes == 1:
        _process(0, options, port)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
        multiprocessing.spawn(_process, (options, port), nprocs=options.processes, daemon=True)  # type: ignore[attr-defined,no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(main())
