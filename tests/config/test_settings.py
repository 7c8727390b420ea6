"""The settings and the files of config/: defaults, names, and that nothing changes once built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from stream_sttm import registry
from stream_sttm.config import settings as config
from stream_sttm.config.loading import load
from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import Settings, StreamSettings
from stream_sttm.reducers.sttm_streaming import SttmStreaming

FOLDER = Path(__file__).parents[2] / "config"
SECRET = "hunter2"


# --- the files of config/


def uncommented(text: str) -> str:
    """default.yaml with its examples taken in."""
    text = re.sub(r"^(streams: )\{\}$|^(queries: )\{\}$", r"\1\2", text, flags=re.M)
    text = text.replace("sinks: []", "sinks:")
    return re.sub(r"^#(?=  )", "", text, flags=re.M)


def keys_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def descriptions(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a section and below, and what it is said to be."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield f"{prefix}{name}", str(annotation.__doc__)
            yield from descriptions(annotation, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", str(field.description)
        if get_origin(annotation) is dict:
            yield from descriptions(get_args(annotation)[1], f"{prefix}{name}.*.")


def commented_keys(text: str) -> dict[str, str]:
    """Each key of a YAML text with the comment line above it; the names of streams and queries as '*'."""
    found: dict[str, str] = {}
    parents: list[str] = []
    comment = ""
    for line in text.splitlines():
        body = line.strip()
        if body.startswith("#"):
            comment = body.removeprefix("# ")
        elif match := re.match(r"( *)([a-z_]+):", line):
            depth = len(match[1]) // 2
            parents = [*parents[:depth], match[2]]
            path = ".".join(
                "*" if i == 1 and parents[0] in ("streams", "queries") else part
                for i, part in enumerate(parents)
            )
            found[path] = comment
            comment = ""
    return found


def test_default_yaml_holds_every_default_and_no_other_key() -> None:
    tree = yaml.safe_load((FOLDER / "default.yaml").read_text())
    assert tree == Settings().model_dump(mode="json")


def test_default_yaml_shows_every_key_of_a_stream_and_a_query_with_its_default() -> None:
    tree = yaml.safe_load(uncommented((FOLDER / "default.yaml").read_text()))
    (stream,), (query,) = tree["streams"].values(), tree["queries"].values()
    for example, section, required in (
        (stream, StreamSettings, {"source"}),
        (query, QuerySettings, {"streams", "ask"}),
    ):
        defaults = {
            name: field.default
            for name, field in section.model_fields.items()
            if name not in required
        }
        assert set(example) == {*required, *defaults}
        assert {name: example[name] for name in defaults} == defaults


def test_default_yaml_describes_every_key_as_the_settings_do() -> None:
    text = "\n".join(
        line
        for line in uncommented((FOLDER / "default.yaml").read_text()).splitlines()
        if not re.match(r"  [a-z_]+: \S+ +# ", line)  # the reducer's options, checked below
    )
    told = {key: value for key, value in commented_keys(text).items() if not key.endswith(".*")}
    assert told == dict(descriptions(Settings))


def test_default_yaml_shows_every_option_of_the_default_reducer_as_it_is() -> None:
    tree = yaml.safe_load(uncommented((FOLDER / "default.yaml").read_text()))
    own = set(config.ReducerSettings.model_fields)
    options = {key: value for key, value in tree["reducer"].items() if key not in own}
    built = registry.build(SttmStreaming, options, kind="reducer")
    assert built == SttmStreaming()
    assert set(options) == {field.name for field in fields(SttmStreaming)}


@pytest.mark.parametrize("name", ["default.yaml", "demo.yaml", "cameras.yaml"])
def test_the_example_files_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DOOR_PASSWORD", "MQTT_PASSWORD", "STREAM_STTM_TOKEN"):
        monkeypatch.setenv(variable, "a/b@c")
    settings = load(FOLDER / name)
    if name == "cameras.yaml":
        assert settings.streams["door"].source.startswith("rtsp://viewer:a%2Fb%40c@192.168.1.20")
        assert settings.http.token is not None
        assert settings.http.token.get_secret_value() == "a/b@c"


def test_the_examples_of_default_yaml_load_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "x")
    path = tmp_path / "config.yaml"
    path.write_text(uncommented((FOLDER / "default.yaml").read_text()))
    settings = load(path)
    assert settings.queries["visitor"].streams == ["door"]


# --- the settings


def test_settings_are_not_read_from_the_environment_behind_the_loaders_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAM_STTM__HTTP__PORT", "2000")
    assert Settings().http.port == 8080


def test_settings_are_frozen_at_every_depth() -> None:
    settings = Settings.model_validate({"streams": {"cam": {"source": "scene://a"}}})
    for owner, name in (
        (settings, "model"),
        (settings.http, "port"),
        (settings.reducer, "name"),
        (settings.streams["cam"], "fps"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, name, "other")


def test_settings_built_without_a_file_are_held_to_the_same_names() -> None:
    with pytest.raises(ValidationError, match="there is no stream 'b'"):
        Settings.model_validate({"queries": {"q": {"streams": ["b"], "ask": "x"}}})


@pytest.mark.parametrize(
    "name", ["", "-a", "a b", "a/b", "a+b", "a#b", "ä", "a" * 65, "a\nb", "$SYS", ".", "a\n"]
)
def test_a_name_that_no_topic_could_hold_is_refused(name: str) -> None:
    for tree in (
        {"streams": {name: {"source": "scene://a"}}},
        {
            "streams": {"c": {"source": "scene://a"}},
            "queries": {name: {"streams": ["c"], "ask": "x"}},
        },
    ):
        with pytest.raises(ValidationError, match="letters, digits"):
            Settings.model_validate(tree)


@pytest.mark.parametrize("name", ["a", "A9", "front_door-2", "a" * 64, "0"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert name in Settings.model_validate({"streams": {name: {"source": "scene://a"}}}).streams


def test_the_token_is_not_shown_by_the_settings() -> None:
    settings = Settings.model_validate({"http": {"token": SECRET}})
    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


def test_one_of_a_family_may_be_named_alone() -> None:
    settings = Settings.model_validate({"memory": {"retention": "lru"}, "reducer": "none"})
    assert (settings.memory.retention.name, settings.reducer.name) == ("lru", "none")
