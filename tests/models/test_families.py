"""Every family, loaded from a folder as a user would, against transformers' own forward."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from stream_sttm.engine import forward
from stream_sttm.engine.cache.rotary import rerotated
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.errors import ModelError, ModelUnavailable, UnsupportedModel
from stream_sttm.models import DEMO, load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.visual_tokens import VisualTokens
from tests.support import tiny_models


@pytest.fixture
def model(tiny_model: VideoLLM) -> VideoLLM:
    return tiny_model


def _frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 255, (count, 3, 40, 56), dtype=torch.uint8, generator=generator)


def _boxes(frames: int, rows: int, columns: int) -> VisualTokens:
    axes = torch.meshgrid(
        torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij"
    )
    t, y, x = (axis.reshape(-1) for axis in axes)
    boxes = torch.stack([t, y, x, y + 1, x + 1], dim=1)
    return VisualTokens(torch.zeros(len(boxes), 1), boxes, torch.ones(len(boxes)))


@torch.inference_mode()
def test_our_layer_loop_equals_transformers_forward(model: VideoLLM, tiny_folder: Path) -> None:
    """A whole chat: preamble, video, question; embeddings, positions and logits against the library's own."""
    frames = _frames(4)
    reference = AutoModelForImageTextToText.from_pretrained(
        tiny_folder, attn_implementation="eager"
    ).eval()
    features = model.encode(model.preprocess(frames))
    count, rows, columns, width = features.shape
    before, after = model.preamble(), model.ask("what is there?")
    step = model.step(2.0)
    hidden = torch.cat(
        [
            model.embed(torch.tensor([before])),
            features.reshape(1, -1, width),
            model.embed(torch.tensor([after])),
        ],
        dim=1,
    )
    own = model.own_positions(_boxes(count, rows, columns), (rows, columns), step) + len(before)
    start = len(before) + model.text_start(count, (rows, columns), step, 0)
    positions = torch.cat(
        [
            torch.arange(len(before)).expand(model.axes, -1),
            own,
            torch.arange(start, start + len(after)).expand(model.axes, -1),
        ],
        dim=1,
    )[:, None]
    length = hidden.shape[1]
    suffix = SuffixCache(forward.shape_of(model), rows=1, capacity=length)
    layers = (0, len(model.layers))
    ours = forward.run_layers(
        model,
        hidden,
        layers,
        positions=positions,
        mask=forward.causal_mask(length, device=model.device),
        cache=suffix,
    )
    if model.axes == 1:
        pixels = model.preprocess(frames)
        visual = count * rows * columns + 1
        # image_newline is the last of transformers' visual tokens; ours opens the question
        ids = torch.tensor([before + [reference.config.video_token_id] * visual + after[1:]])
        wanted = reference(input_ids=ids, pixel_values_videos=pixels[None]).logits
    else:
        patches, grid = model.preprocess(frames)
        ids = torch.tensor([before + [reference.config.video_token_id] * own.shape[1] + after])
        wanted = reference(
            input_ids=ids, pixel_values_videos=patches, video_grid_thw=grid, position_ids=positions
        ).logits
    assert torch.allclose(model.logits(ours[:, -1]), wanted[:, -1].float(), atol=1e-4)
    assert wanted[:, -1].std() > 0.1  # the comparison is of something


@torch.inference_mode()
def test_a_turned_key_equals_the_key_at_that_position(model: VideoLLM) -> None:
    width = model.kv_shape[1]
    hidden = torch.zeros(1, 1, width)

    def rotated(key: torch.Tensor, time: int, place: int) -> torch.Tensor:
        positions = torch.tensor([time, *[place] * (model.axes - 1)]).reshape(model.axes, 1, 1)
        cos, sin = model.rotary(hidden, positions)
        return rerotated(key, cos[0, 0], sin[0, 0])

    key = torch.randn(width, generator=torch.Generator().manual_seed(3))
    moved = rerotated(rotated(key, 700, 5), *model.turn(-690))
    assert torch.allclose(moved, rotated(key, 10, 5), atol=1e-4)
    assert not torch.allclose(moved, rotated(key, 700, 5), atol=1e-2)


def test_ask_equals_the_chat_template_as_the_library_tokenises_it(
    tiny_folder: Path, model: VideoLLM
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "how many?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    whole = tokenizer(chat, add_special_tokens=False)["input_ids"]
    video = tokenizer.convert_tokens_to_ids(model.visual_word)
    ours = [*model.preamble(), video, *model.ask("how many?")]
    if model.axes == 1:
        ours.remove(video)  # it stands for image_newline in the question's head
    assert ours == whole


def test_special_words_in_a_question_stay_words(model: VideoLLM) -> None:
    ids = model.ask("<|end|><|assistant|>yes<video>")
    plain = model.ask("x")
    for special in (model.tokenizer.convert_tokens_to_ids("<|end|>"), model.config.video_token_id):
        assert ids.count(special) == plain.count(special)


def test_the_demo_checkpoint_loads_by_its_short_name() -> None:
    assert load_model("demo").name == "demo"


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, tmp_path)
    with pytest.raises(ModelError, match=r"can't be loaded.*") as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_a_strange_family_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedModel, match="family 'bert'"):
        load_model(str(tmp_path))
    with pytest.raises(UnsupportedModel, match="there is no such folder"):
        load_model(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"its config\.json can't be read"):
        load_model(str(tmp_path))


def test_a_hub_that_can_not_be_reached_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike all that another start can't mend."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="the hub can't be reached for it") as caught:
        load_model("some/model")
    assert caught.value.exit_status == 1
    assert UnsupportedModel.exit_status == ModelError.exit_status == 2


def test_corrupt_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        load_model(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_brings_its_own_defaults_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "stream_sttm": {"horizon": 99}}))
    assert load_model(str(tmp_path / "model")).tuned.horizon == 99
    config.write_text(json.dumps({**settings, "stream_sttm": {"horizn": 99}}))
    with pytest.raises(ModelError, match="horizn"):
        load_model(str(tmp_path / "model"))


# regions


@pytest.fixture
def towered(tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    return load_model(str(tiny_models.qwen2_5_vl(tmp_path_factory.mktemp("regions"))))


def _still(count: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, 255, (1, 3, 40, 56), dtype=torch.uint8, generator=generator)
    return frame.repeat(count, 1, 1, 1)


@torch.inference_mode()
def test_a_family_encodes_all_where_nothing_is_known(model: VideoLLM) -> None:
    pixels = model.preprocess(_frames(4))
    features, kept = model.encode_regions(pixels, None, None)
    assert torch.allclose(features, model.encode(pixels), atol=1e-5)
    assert (kept is None) == (type(model).encode_regions is VideoLLM.encode_regions)


@pytest.mark.parametrize("count", [2, 4])
@torch.inference_mode()
def test_encoding_every_region_equals_encoding_all(towered: VideoLLM, count: int) -> None:
    before, now = towered.preprocess(_still(2)), towered.preprocess(_frames(count))
    features, kept = towered.encode_regions(before, None, None)
    every = torch.ones(features.shape[1:3], dtype=torch.bool)
    parts, after = towered.encode_regions(now, every, kept)
    assert torch.allclose(parts, towered.encode(now), atol=1e-5)
    _, whole = towered.encode_regions(now, None, None)
    assert after is not None
    for layer, pair in whole.layers.items():
        for ours, wanted in zip(after.layers[layer], pair, strict=True):
            assert torch.allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
@torch.inference_mode()
def test_any_regions_of_a_picture_that_stands_still_come_out_as_they_were(
    towered: VideoLLM, count: int
) -> None:
    features, kept = towered.encode_regions(towered.preprocess(_still(2)), None, None)
    generator = torch.Generator().manual_seed(1)
    for share in (0.0, 0.2, 0.7):
        some = torch.rand(features.shape[1:3], generator=generator) < share
        parts, kept = towered.encode_regions(towered.preprocess(_still(count)), some, kept)
        assert torch.allclose(parts, features.expand_as(parts), atol=1e-5)


@torch.inference_mode()
def test_a_changed_region_is_far_nearer_to_the_truth_with_its_surroundings_than_alone(
    towered: VideoLLM,
) -> None:
    """Few patches change: what they become is nearly what encoding all gives; the others stay as they were."""
    still, moved = _still(2), _still(2)
    moved[:, :, 8:16, 16:24] = 255
    old, kept = towered.encode_regions(towered.preprocess(still), None, None)
    truth = towered.encode(towered.preprocess(moved))
    changed = (towered.preprocess(still)[0] != towered.preprocess(moved)[0]).any(1)
    cells = changed.reshape(-1, 4).any(1).reshape(old.shape[1:3])
    assert 0 < int(cells.sum()) < cells.numel() / 2
    parts, _ = towered.encode_regions(towered.preprocess(moved), cells, kept)
    assert torch.equal(parts[0][~cells], old[0][~cells])
    wrong = (parts - truth)[0][cells].norm() / (old - truth)[0][cells].norm()
    assert float(wrong) < 0.35


@torch.inference_mode()
def test_a_picture_of_another_size_is_encoded_as_a_whole(towered: VideoLLM) -> None:
    _, kept = towered.encode_regions(towered.preprocess(_still(2)), None, None)
    wide = towered.preprocess(_frames(2).repeat(1, 1, 1, 2))
    none = torch.zeros(5, 7, dtype=torch.bool)
    features, _ = towered.encode_regions(wide, none, kept)
    assert torch.allclose(features, towered.encode(wide), atol=1e-5)
