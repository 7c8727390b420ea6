"""Facts about how the bundled model is taught: the same lessons every time, right labels, and a run that goes on."""

import argparse
import random

import numpy as np
import pytest
import torch

from stream_sttm.demo.architecture import GRID, SIDE
from stream_sttm.demo.dataset import (
    LABELS,
    LONGEST,
    NOTHING,
    Dataset,
    Look,
    labels,
    look,
    patches,
    pictures,
    through_codec,
)
from stream_sttm.demo.tokenizer import (
    ASSISTANT,
    END,
    TEMPLATE,
    USER,
    VISION_START,
    build_tokenizer,
    unanswerable,
)
from stream_sttm.demo.train import CURRICULUM, Run, curriculum, place, rate
from stream_sttm.demo.trainee import Trainee
from stream_sttm.models import load_model
from stream_sttm.scene.drawing import COLOURS, SHAPES
from stream_sttm.scene.questions import Asked
from stream_sttm.scene.timeline import Thing
from stream_sttm.sources.scene import Scene


@pytest.fixture(scope="module")
def pupil():
    return Trainee(seed=3)


@pytest.fixture(scope="module")
def school(pupil):
    return Dataset(pupil.tokenizer, seed=5)


def test_the_packed_forward_is_the_classes_own(pupil, school):
    batch = school.batch(3, clips=2, frames=4, asked=3)
    with torch.no_grad():
        seen = pupil.packed.see(batch.patches)
        text, after = pupil.packed(batch, seen)
        core = pupil.model.model
        grid = torch.tensor([[4, GRID, GRID]])
        own = core.get_video_features(batch.patches[4:].flatten(0, 1), grid)
        own = torch.cat(tuple(own.pooler_output))
        torch.testing.assert_close(seen[4:].flatten(0, 1), own, rtol=1e-4, atol=1e-5)
        ids = pupil.tokenizer(TEMPLATE.partition("{")[0] + USER + VISION_START)
        opening = torch.tensor(ids["input_ids"])
        first = len(opening)
        for question in range(2):
            here = batch.owner[1] == question
            asked = core.language_model.embed_tokens(batch.text[1][here])
            start = core.language_model.embed_tokens(opening)
            cells = torch.arange(GRID * GRID).repeat(4)
            places = torch.cat(
                [
                    torch.arange(first).expand(3, -1),
                    first
                    + torch.stack(
                        [
                            batch.times[1].repeat_interleave(GRID * GRID),
                            cells // GRID,
                            cells % GRID,
                        ]
                    ),
                    first
                    + batch.offset[1][here]
                    + torch.stack([batch.begin[1], *[batch.begin[1] - batch.times[1, 0]] * 2])[
                        :, None
                    ],
                ],
                1,
            )
            out = core.language_model(
                inputs_embeds=torch.cat([start, own, asked])[None], position_ids=places[:, None]
            ).last_hidden_state[0]
            torch.testing.assert_close(text[1][here], out[-len(asked) :], rtol=1e-3, atol=1e-4)
    assert len(after) == pupil.model.config.text_config.num_hidden_layers


def test_a_lesson_is_the_same_whenever_it_is_taken(pupil, school):
    again = Dataset(pupil.tokenizer, seed=5)
    one, same, other = (
        s.batch(n, clips=2, frames=2, asked=4) for s, n in ((school, 7), (again, 7), (school, 8))
    )
    for name in ("patches", "times", "text", "goals", "weights"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.patches, other.patches)


def test_goals_spell_the_truth_and_its_end(pupil, school):
    batch = school.batch(2, clips=2, frames=3, asked=5)
    for row, asked in enumerate(school.asked):
        assert len(asked) == 5
        for number, question in enumerate(asked):
            here = batch.owner[row] == number
            learnt = batch.goals[row][here]
            told = pupil.tokenizer.decode(learnt[learnt != NOTHING])
            assert told.strip() == question.truth + END
            assert batch.offset[row][here].tolist() == list(range(int(here.sum())))
            assert ASSISTANT in pupil.tokenizer.decode(batch.text[row][here])


def test_a_question_is_taught_as_the_served_model_is_asked(school):
    served = load_model("demo")
    for text in ("is there a red circle?", "Wo ist der Hund?"):
        asked, _ = school.ids(Asked(text, "yes", "exist"))
        assert asked == served.ask(text)
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    once = build_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert once == served.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert once.endswith("<|user|>user<|assistant|>assistant<|end|><|user|>user<|assistant|>")


def test_labels_say_what_is_where_and_what_was():
    stays = Thing("red", "star", 12.0, 0.0, COLOURS["red"], (24.0, 24.0), None, 0.0, -5.0, 99.0)
    goes = Thing("blue", "cross", 12.0, 0.0, COLOURS["blue"], (72.0, 72.0), None, 0.0, -5.0, 2.9)
    moves = Thing("green", "circle", 10.0, 0.0, COLOURS["green"], (20.0, 72.0), "right", 5.0, 2.0, 30.0)  # fmt: skip
    seen = Look(Scene(0, script=[stays, goes, moves]), 0.0, 2.0, (0, 1, 2, 3, 4))
    found = labels(seen, seen.truth)
    assert set(found) == set(LABELS)
    shape = found["shape"].reshape(5, GRID, GRID)
    assert shape[4, 2, 2] == SHAPES.index("star") + 1
    assert shape[0, 6, 6] == SHAPES.index("cross") + 1
    assert shape[4, 6, 6] == 0
    left = found["left_shape"].reshape(5, GRID, GRID)
    assert (left[:3] == 0).all()
    assert left[3, 6, 6] == left[4, 6, 6] == SHAPES.index("cross") + 1
    assert found["left_last"].reshape(5, GRID, GRID)[4, 6, 6] == 1
    came = found["came_last"].reshape(5, GRID, GRID)
    assert came[4][found["shape"].reshape(5, GRID, GRID)[4] == SHAPES.index("circle") + 1].all()
    assert came[4, 2, 2] == 0
    motion = found["motion"].reshape(5, GRID, GRID)
    assert motion[4, 2, 2] == 1
    assert motion.max() > 1


def test_looks_have_the_length_asked_for_and_stay_within_the_chapter():
    rng = random.Random(4)
    spans = set()
    for frames in (1, 2, 8, 16) * 20:
        seen = look(Scene(1_000_001), rng, frames)
        assert len(seen.slots) == frames
        assert all(b > a for a, b in zip(seen.slots, seen.slots[1:], strict=False))
        spans.add(round(seen.moments[-1] - seen.moments[0]))
    assert max(spans) <= LONGEST + 2
    assert len([span for span in spans if span > 60]) > 5


def test_pictures_are_what_the_models_family_would_be_given(pupil):
    seen = look(Scene(1_000_001), random.Random(1), 3)
    frames = pictures(seen, random.Random(2))
    assert frames.shape == (6, 3, SIDE, SIDE)
    family = load_model("demo")
    flat, grid = family.preprocess(frames)
    assert grid.tolist() == [[3, GRID, GRID]]
    torch.testing.assert_close(patches(frames).flatten(0, 1), flat)


def test_a_real_codec_changes_pictures_a_little():
    shots = [Scene(5).render(t, 160) for t in (0.0, 0.5, 1.0)]
    coded = through_codec(shots, 32)
    assert len(coded) == 3
    for before, after in zip(shots, coded, strict=True):
        difference = np.abs(before.astype(int) - after)
        assert 0.5 < difference.mean() < 12


def test_strange_questions_come_in_many_sorts():
    rng = random.Random(1)
    drawn = {unanswerable(rng) for _ in range(400)}
    assert len(drawn) > 250
    assert "" in drawn
    assert any(not question.isascii() for question in drawn)


def test_the_curriculum_falls_from_peak_to_last_and_ends():
    total = sum(stage.steps for stage in CURRICULUM)
    stages = [place(step, CURRICULUM)[0] for step in range(0, total, 50)]
    assert [stage.name for stage in dict.fromkeys(stages)] == [
        "frames",
        "moments",
        "looks",
        "memories",
    ]
    stage, done = place(total - 1, CURRICULUM)
    assert rate(stage, done, total - 1) == pytest.approx(stage.last, rel=0.01)
    assert rate(CURRICULUM[0], 0.0, 0) < 0.1 * CURRICULUM[0].peak
    with pytest.raises(ValueError, match="over"):
        place(total, CURRICULUM)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    def run(folder):
        return Run(argparse.Namespace(out=str(folder), seed=2, device="cpu", processes=1, share=0.001), 0)  # fmt: skip

    whole = run(tmp_path)
    assert len(curriculum(0.001)) == len(CURRICULUM)
    whole.train()
    broken = tmp_path / "broken"
    broken.mkdir()
    first = run(broken)
    first.train(until=2)
    second = run(broken)
    assert second.step == 2
    second.train()
    for one, other in zip(whole.weights, second.weights, strict=True):
        torch.testing.assert_close(one, other)
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json",
    }  # fmt: skip
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.config.model_type == "qwen2_5_vl"
