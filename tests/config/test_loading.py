"""Loading a configuration: in which order it is taken, and what a person is told about a fault."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.config.loading import load
from stream_sttm.config.settings import Settings
from stream_sttm.errors import ConfigError

SECRET = "hunter2"
Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("STREAM_STTM__"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "service.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def faults(path: Path | None, **options: Any) -> list[str]:
    """The lines that loading `path` complains with, without the file's own name."""
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).split("\n")]


# --- order


def test_the_file_wins_over_defaults_environment_over_file_and_overrides_over_all(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("memory: {window_tokens: 1000, evict_share: 0.25}\nhttp: {port: 1000}")
    assert load(None).memory.window_tokens == 4096
    assert load(path).memory.window_tokens == 1000
    monkeypatch.setenv("STREAM_STTM__MEMORY__WINDOW_TOKENS", "2000")
    monkeypatch.setenv("STREAM_STTM__HTTP__PORT", "2000")
    assert load(path).memory.window_tokens == 2000
    settings = load(path, overrides={"http.port": 3000})
    assert (settings.http.port, settings.memory.window_tokens) == (3000, 2000)
    assert settings.memory.evict_share == 0.25  # a section is merged key by key, not replaced


def test_the_environment_reaches_one_stream_and_whole_lists(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('streams: {cam: {source: "scene://a", fps: 2}}')
    monkeypatch.setenv("STREAM_STTM__STREAMS__CAM__FPS", "4")
    monkeypatch.setenv("STREAM_STTM__SINKS", '["mqtt://one/a", "mqtt://two/b"]')
    monkeypatch.setenv("stream_sttm__log_level", "debug")
    settings = load(path)
    assert settings.streams["cam"].fps == 4
    assert settings.streams["cam"].source == "scene://a"
    assert settings.sinks == ["mqtt://one/a", "mqtt://two/b"]
    assert settings.log_level == "debug"


# --- ${NAME}


@pytest.mark.parametrize(
    ("password", "encoded"),
    [
        ("plain", "plain"),
        ("a@b:c/d?e#f", "a%40b%3Ac%2Fd%3Fe%23f"),
        ("100%", "100%25"),
        ("ä b", "%C3%A4%20b"),
        ("${OTHER}", "%24%7BOTHER%7D"),
    ],
)
def test_a_variable_in_a_url_is_percent_encoded(
    write: Write, monkeypatch: pytest.MonkeyPatch, password: str, encoded: str
) -> None:
    monkeypatch.setenv("PASSWORD", password)
    path = write("streams: {cam: {source: 'rtsp://u:${PASSWORD}@host/live'}}")
    assert load(path).streams["cam"].source == f"rtsp://u:{encoded}@host/live"


def test_a_variable_elsewhere_is_taken_as_it_is(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "a@b/c")
    monkeypatch.setenv("SOURCE", "scene://hall?seed=3")
    monkeypatch.setenv("FPS", "3")
    path = write("http: {token: '${TOKEN}'}\nstreams: {cam: {source: '${SOURCE}', fps: '${FPS}'}}")
    settings = load(path)
    assert settings.http.token is not None
    assert settings.http.token.get_secret_value() == "a@b/c"
    assert settings.streams["cam"].source == "scene://hall?seed=3"
    assert settings.streams["cam"].fps == 3


def test_every_missing_variable_is_told_with_its_path(write: Write) -> None:
    path = write(
        "streams: {cam: {source: 'rtsp://u:${NO_SUCH_A}@host/live'}}\nsinks: ['mqtt://${NO_SUCH_B}']"
    )
    told = faults(path)
    assert any(line.startswith("streams.cam.source:") and "NO_SUCH_A" in line for line in told)
    assert any(line.startswith("sinks.0:") and "NO_SUCH_B" in line for line in told)


def test_a_dollar_that_names_nothing_stays(write: Write) -> None:
    path = write(
        "streams: {cam: {source: 'scene://a'}}\nqueries: {q: {streams: [cam], ask: '$5 or ${} or $X?'}}"
    )
    assert load(path).queries["q"].ask == "$5 or ${} or $X?"


# --- faults


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stream: {}", "stream: unknown key; did you mean 'streams'?"),
        (
            "memory: {windw_tokens: 5}",
            "memory.windw_tokens: unknown key; did you mean 'window_tokens'?",
        ),
        ("http: {prot: 5}", "http.prot: unknown key; did you mean 'port'?"),
        (
            "streams: {cam: {source: 'scene://a', fsp: 2}}",
            "streams.cam.fsp: unknown key; did you mean 'fps'?",
        ),
        (
            "streams: {cam: {source: 'scene://a'}}\nqueries: {q: {streams: [cam], ask: a, evry: 2}}",
            "queries.q.evry: unknown key; did you mean 'every'?",
        ),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(
    write: Write, text: str, line: str
) -> None:
    assert faults(write(text)) == [line]


def test_all_faults_are_told_at_once_each_with_its_path(write: Write) -> None:
    path = write(
        """
modell: x
dtype: float8
memory: {window_tokens: 1}
streams:
  cam: {source: "no-url", fps: 100}
  "bad name": {source: "scene://a"}
queries:
  look: {streams: [camm], every: 0}
  deep: {streams: [cam], ask: "x", announce: sometimes}
http: {host: 0.0.0.0}
sinks: ["mqtt://host:99999"]
"""
    )
    paths = [line.partition(":")[0] for line in faults(path)]
    assert sorted(paths) == sorted(
        [
            "modell",
            "dtype",
            "memory.window_tokens",
            "streams.cam.source",
            "streams.cam.fps",
            "streams",
            "queries.look.ask",
            "queries.look.every",
            "queries.look.streams",
            "queries.deep.announce",
            "http",
            "sinks.0",
        ]
    )


def test_every_contradiction_is_told_not_only_the_first(write: Write) -> None:
    path = write(
        """
answering: {max_question_chars: 5}
streams: {cam: {source: "scene://a"}, "a/b": {source: "scene://a"}}
queries:
  "q+": {streams: [cam, nobody], ask: "too long"}
  r: {streams: [cma], ask: "x", recall: always}
memory: {recall: {when: never}}
"""
    )
    told = faults(path)
    assert len(told) == 6
    assert "queries.r.recall: always, but memory.recall.when is never, so nothing is kept" in told
    assert "queries.q+.ask: has 8 characters; answering.max_question_chars is 5" in told
    assert "queries.r.streams: there is no stream 'cma'; did you mean 'cam'?" in told


def test_faults_that_only_the_caller_knows_join_the_others(write: Write) -> None:
    path = write("modell: x")
    told = faults(path, check=lambda tree: [f"reducer: told {sorted(tree)}"])
    assert told == ["modell: unknown key; did you mean 'model'?", "reducer: told ['modell']"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("streams:\n  cam: {source: 'x\n", "not valid YAML at line 3"),
        ("a:\n\tb: 1", "not valid YAML at line 2, column 1"),
        ("model: a\nmodel: b", "not valid YAML at line 2, column 1: a key stands twice"),
        ("streams:\n  cam: {fps: 1}\n  cam: {fps: 2}", "at line 3, column 3: a key stands twice"),
        ("streams: {cam: {fps: 1, fps: 2}}", "a key stands twice"),
        ("streams: {on: {source: 'scene://a'}}", "a key that is no text"),
        ("streams: {1: {source: 'scene://a'}}", "a key that is no text"),
        ("http: {token: *hunter2}", "a tag or alias that has no meaning"),
        ("http: {token: !hunter2 x}", "a tag or alias that has no meaning"),
        ("model: 2024-13-45", "at line 1, column 8: a number or date that can't be"),
        ("streams: &a {cam: *a}", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("- a", "must be a map"),
        ("just words", "must be a map"),
        ("streams: [a]", "streams: must be a map of names"),
        ("streams: {cam: rtsp}", "streams.cam: must be a map of keys"),
        ("sinks: mqtt", "sinks: must be a list"),
        ("memory: 5", "memory: must be a map of keys"),
        ("version: 2", "version: Input should be 1"),
        ("streams: {cam: {}}", "streams.cam.source: missing"),
        ("answering: {timeout: .inf}", "answering.timeout: Input should be a finite number"),
        ("answering: {timeout: .nan}", "answering.timeout: Input should be a finite number"),
        ("http: {host: 0.0.0.0, token: ''}", "http.token: "),
        ("http: {host: 0.0.0.0}", "http: host '0.0.0.0' is reachable from outside: set http.token"),
    ],
)
def test_a_bad_file_is_one_clear_line(write: Write, text: str, expected: str) -> None:
    (line,) = faults(write(text))
    assert expected in line
    assert SECRET not in line


def test_a_file_that_cant_be_read_is_one_clear_line(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.yaml", tmp_path / "film.mp4"
    binary.write_bytes(bytes(range(256)))
    zeros = tmp_path / "zeros.yaml"
    zeros.write_bytes(bytes(64))
    assert faults(missing) == ["can't read the configuration: No such file or directory"]
    assert faults(binary) == ["can't read the configuration: it is not UTF-8 text"]
    assert faults(zeros) == ["not valid YAML: it holds characters that no text file has"]
    assert faults(tmp_path) == ["can't read the configuration: Is a directory"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file_is_the_defaults(write: Write, text: str) -> None:
    assert load(write(text)) == Settings()


def test_anchors_and_merge_keys_may_be_used(write: Write) -> None:
    path = write("streams:\n  a: &a {source: 'scene://a', fps: 4}\n  b: {<<: *a, fps: 1}\n")
    settings = load(path)
    assert (settings.streams["b"].source, settings.streams["b"].fps) == ("scene://a", 1)


# --- the environment's own faults


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("STREAM_STTM__MODLE", "x", "names no setting; did you mean 'model'?"),
        ("STREAM_STTM__", "x", "names no setting"),
        ("STREAM_STTM__MODEL__NAME", "x", "names no setting; model has no keys of its own"),
        ("STREAM_STTM__SINKS", "mqtt://u:hunter2@host", "is not JSON"),
        (
            "STREAM_STTM__MEMORY__WINDOW_TOKNS",
            "5",
            "memory.window_tokns: unknown key; did you mean",
        ),
        (
            "STREAM_STTM__MEMORY__WINDOW_TOKENS",
            "many",
            "memory.window_tokens: Input should be a valid",
        ),
        ("STREAM_STTM__STREAMS__CAM__FPS", "5", "streams.cam.source: missing"),
    ],
)
def test_a_wrong_variable_is_told_as_coming_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    (line,) = faults(None)
    assert expected in line
    assert SECRET not in line
    if "missing" not in expected:
        assert line.startswith("environment: ")


def test_several_wrong_variables_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_STTM__SINKS", "x")
    monkeypatch.setenv("STREAM_STTM__STREAMS", "y")
    monkeypatch.setenv("STREAM_STTM__NOTHING", "z")
    assert len(faults(None)) == 3


def test_a_wrong_override_is_told_as_coming_from_the_command_line(write: Write) -> None:
    (line,) = faults(write("http: {port: 8080}"), overrides={"http.port": 70000})
    assert line.startswith("command line: http.port: ")


# --- secrets


@pytest.mark.parametrize(
    "text",
    [
        "streams: {cam: {source: 'rtsp://admin:hunter2@host:99999/live'}}",
        "streams: {cam: {source: 'rtsp://admin:hunter2#x@host/live', fps: 99}}",
        "streams: {cam: {source: 'admin@hunter2'}}",
        "streams: {cam: {source: '10.0.0.5/live?token=hunter2'}}",
        "streams: {cam: {source: '//admin:hunter2'}}",
        "streams: {cam: {source: 'rtsp://[hunter2/'}}",
        "streams: {cam: {source: ['rtsp://admin:hunter2@host', 'rtsp://admin:hunter2@host:x']}}",
        "streams: {cam: {source: [['rtsp://admin:hunter2@host']]}}",
        "streams: {cam: {source: {'rtsp://admin:hunter2@host': 1}}}",
        "streams: {'rtsp://admin:hunter2@host/': {source: 'scene://a', fps: 99}}",
        "streams: {'rtsp://admin:hunter2@host/': {source: '${NO_SUCH_NAME}'}}",
        "streams: {c: {source: 'scene://a'}}\nqueries: {q: {streams: ['rtsp://u:hunter2@h'], ask: x}}",
        "streams: {c: {source: 'scene://a', 'rtsp://u:hunter2@h': 1}}",
        "sinks: ['mqtt://u:hunter2@host:port']",
        "sinks: ['u:hunter2@host']",
        "sinks: 'mqtt://u:hunter2@host'",
        "sinks: {'mqtt://u:hunter2@host': 1}",
        "http: {token: hunter2, host: [hunter2]}",
        "http: {token: [hunter2]}",
        "log_level: hunter2",
        "dtype: hunter2",
        "version: hunter2",
    ],
)
def test_no_fault_repeats_a_credential(write: Write, text: str) -> None:
    told = faults(write(text))
    assert SECRET not in "\n".join(told)
    assert told


def test_a_secret_may_stand_in_a_file_of_its_own(write: Write, tmp_path: Path) -> None:
    (tmp_path / "door").write_text("p@ss/wörd#1\n")
    (tmp_path / "token").write_text("se same")
    text = f"streams: {{cam: {{source: 'rtsp://u:${{file:{tmp_path}/door}}@host/live'}}}}\n"
    settings = load(write(text + f"http: {{token: '${{file:{tmp_path}/token}}'}}"))
    assert settings.streams["cam"].source == "rtsp://u:p%40ss%2Fw%C3%B6rd%231@host/live"
    assert settings.http.token is not None
    assert settings.http.token.get_secret_value() == "se same"


def test_a_secrets_file_that_can_not_be_read_is_a_fault_at_its_place(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    for name in ("none", "binary", "large", ""):
        text = f"streams: {{cam: {{source: 'rtsp://u:${{file:{tmp_path}/{name}}}@host/live'}}}}"
        (told,) = faults(write(text))
        assert told.startswith("streams.cam.source: can't read the file")


@pytest.mark.parametrize("section", ["streams", "queries", "sinks", "memory", "http", "sources"])
def test_a_section_whose_lines_are_all_commented_out_is_as_if_it_were_not_there(
    write: Write, section: str
) -> None:
    assert load(write(f"{section}:\n#  a: b\n")) == load(write("{}"))


def test_an_emptied_section_within_another_is_as_if_it_were_not_there(write: Write) -> None:
    assert load(write("memory: {recall: }")) == load(write("{}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queries: {a: {streams: [cam], ask: Is it there?}}", "quote a text that holds ?"),
        ("queries: {a: {streams: [cam], ask: What: this}}", "quote a text that holds ?"),
        ("sinks: [mqtt://a:1/b, {x}", "quote a text that holds ?"),
        ("a: 1\n---\nb: 2", "a second document begins here (---); keep one in the file"),
        ("model: *nothing", "quote values that begin with '*'"),
    ],
)
def test_what_yaml_can_not_read_says_what_to_do(write: Write, text: str, expected: str) -> None:
    (line,) = faults(write(text))
    assert expected in line
    assert re.search(r"at line \d+, column \d+", line)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "yes",
            'must be text, but YAML reads yes, on and true as a truth value: quote it, such as "yes"',
        ),
        (
            "off",
            'must be text, but YAML reads no, off and false as a truth value: quote it, such as "yes"',
        ),
        ("7", 'must be text, not a number: quote it, such as "7"'),
        ("2026-01-01", "must be text, but YAML reads it as a date: quote it"),
    ],
)
def test_a_bare_word_with_a_meaning_in_yaml_says_so(write: Write, word: str, expected: str) -> None:
    streams = "streams: {cam: {source: scene://1}}\n"
    asked = f"queries: {{a: {{streams: [cam], ask: q, type: choice, choices: [{word}, other]}}}}"
    assert faults(write(streams + asked)) == [f"queries.a.choices.0: {expected}"]
    assert faults(write(f"model: {word}")) == [f"model: {expected}"]


@pytest.mark.parametrize("is_merged", [False, True])
def test_aliases_that_unfold_without_end_are_refused_at_once(write: Write, is_merged: bool) -> None:
    """A hundred million values in a few hundred bytes, as lists and through merge keys."""
    lines = ["x0: &x0 {a: b}" if is_merged else "x0: &x0 [a, b]"]
    for level in range(1, 9):
        ten = ", ".join([f"*x{level - 1}"] * 10)
        inner = f"{{<<: [{ten}]}}" if is_merged else f"[{ten}]"
        lines.append(f"x{level}: &x{level} {inner}")
    (line,) = faults(write("\n".join(lines)))
    assert "aliases (*name) unfold to more than 100000 values" in line


def test_an_alias_is_taken_as_what_it_stands_for(write: Write) -> None:
    settings = load(
        write("streams: {a: &a {source: scene://1, fps: 3}, b: {<<: *a, source: scene://2}}")
    )
    assert settings.streams["b"].fps == 3
