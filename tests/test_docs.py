"""What documents, board and rules name exists: metrics, labels, files, commands, snippets; pages are readable."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from textwrap import dedent

import pytest
import yaml
from prometheus_client import REGISTRY, Metric
from prometheus_client.metrics import MetricWrapperBase

from stream_sttm import metrics
from stream_sttm.config.loading import load
from tests.support.dashboard import BOARD, QUERIES
from tests.support.prose import sentences
from workers.cli import main
from workers.config_check import faults_of

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "deploy/*.md", "stream_sttm/**/*.md")
    for path in ROOT.glob(pattern)
)
PAGES = [path for path in DOCUMENTS if (ROOT / "docs") in path.parents]
READ = [ROOT / "README.md", *PAGES]  # what people read from beginning to end
MOST_LINES = {"README.md": 150, "docs/develop/architecture.md": 120}
MEAN_WORDS, MOST_WORDS = 18, 45  # of a sentence
PACKAGES = ("bench", "stream_sttm", "tests", "workers")
ALERTS = yaml.safe_load((ROOT / "dashboards/alerts.yaml").read_text())
RULES = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "histogram": ["_bucket", "_sum", "_count"],
    "info": ["_info"],
}
NAMES_METRIC = re.compile(r"\b(?:stream_sttm|process)_[a-z_]+\b")
OURS = [metric for metric in REGISTRY.collect() if metric.name.startswith("stream_sttm_")]


def series() -> set[str]:
    """The name of every series that the service can show."""
    return {
        metric.name + suffix for metric in REGISTRY.collect() for suffix in SUFFIXES[metric.type]
    }


def labels_of(name: str) -> set[str]:
    """The labels of a series, those that Prometheus adds included."""
    declared = (value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase))
    family = next(
        metric
        for metric in declared
        for described in metric.describe()
        if name in {described.name + suffix for suffix in SUFFIXES[described.type]}
    )
    return {*family._labelnames, "le", "instance", "job"}


EXPRESSIONS = [
    *(pytest.param(q.expression, id=f"{q.panel}-{q.ref}") for q in QUERIES),
    *(pytest.param(expression, id=alert) for alert, expression in RULES.items()),
]


# --- metrics


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_names_series_and_labels_that_exist(expression: str) -> None:
    named = NAMES_METRIC.findall(expression)
    assert named
    assert set(named) <= series()
    for name, matchers in re.findall(r"\b(stream_sttm_[a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels_of(name)
    grouped = [words.split(",") for words in re.findall(r"\bby \(([^)]+)\)", expression)]
    ours = [name for name in named if name.startswith("stream_sttm_")]
    for label in (word.strip() for words in grouped for word in words):
        assert any(label in labels_of(name) for name in ours), label


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                known = set.union(
                    *map(labels_of, re.findall(r"\bstream_sttm_[a-z_]+", target["expr"]))
                )
                assert label in known | {"version", "model"}, panel["title"]


def test_every_metric_has_a_panel() -> None:
    shown = {name for query in QUERIES for name in NAMES_METRIC.findall(query.expression)}
    for metric in OURS:
        assert shown & {metric.name + suffix for suffix in SUFFIXES[metric.type]}, metric.name


@pytest.mark.parametrize("metric", OURS, ids=lambda metric: metric.name)
def test_a_metric_says_what_it_is_in_a_base_unit(metric: Metric) -> None:
    assert re.fullmatch(r"[A-Z0-9].*\.", metric.documentation)
    assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)\b", metric.name)
    if metric.type == "histogram":
        assert metric.name.endswith("_seconds")


# --- documents


FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.M | re.S)


def blocks(document: Path, *languages: str) -> Iterator[str]:
    """The code of the document's fences of these languages."""
    for _, language, code in FENCE.findall(document.read_text()):
        if language in languages:
            yield dedent(code)


def outside_fences(document: Path) -> str:
    """The document without its fenced code."""
    return FENCE.sub("", document.read_text())


def is_path(word: str) -> bool:
    """Whether inline code is a path of this repository: a file's, or a folder's that begins with one of ours."""
    if "yours" in word:  # a file that the reader is to write
        return False
    if re.fullmatch(r"[\w./-]+\.(py|md|yaml|json|toml|txt)", word):
        return "/" in word or word.endswith(".py")  # another name by itself may mean any file
    first = re.fullmatch(r"([\w-]+)/([\w-]+/)*", word)
    return bool(first) and any((base / first[1]).is_dir() for base in (ROOT, ROOT / "stream_sttm"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestDocument:
    """Every document at hand."""

    def test_links_lead_to_files(self, document: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", outside_fences(document)):
            if not re.match(r"[a-z]+:|#", target):
                path = document.parent / target.partition("#")[0]
                assert path.exists(), f"{document.name} links to {target}"

    def test_paths_in_backticks_exist(self, document: Path) -> None:
        for word in filter(is_path, re.findall(r"`([^`]+)`", outside_fences(document))):
            bases = (ROOT, document.parent, ROOT / "stream_sttm", ROOT / "tests")
            assert any((base / word).exists() for base in bases), f"{document.name}: {word}"

    def test_files_in_shell_snippets_exist(self, document: Path) -> None:
        for line in _commands(document):
            for word in shlex.split(line, comments=True):
                if re.fullmatch(r"[\w./-]+\.(yaml|yml|py|json|txt|sh|md|toml)", word):
                    known = (ROOT / word).exists() or (document.parent / word).exists()
                    assert known or word in _given(document), f"{document.name}: {line}"

    def test_make_targets_exist(self, document: Path) -> None:
        rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        for line in _all_commands(document):
            if (words := shlex.split(line, comments=True))[:1] == ["make"]:
                assert {word for word in words[1:] if re.match(r"[a-z-]+$", word)} <= set(rules), (
                    line
                )

    def test_modules_that_are_run_exist(self, document: Path) -> None:
        for line in _all_commands(document):
            for module in re.findall(r"\bpython3? -m ([\w.]+)", line):
                if module.partition(".")[0] in PACKAGES:
                    assert (ROOT / (module.replace(".", "/") + ".py")).exists(), line

    def test_tests_that_are_run_exist(self, document: Path) -> None:
        for line in _all_commands(document):
            called = re.search(r"\bpytest\b(.*)", line)
            for word in called[1].split() if called else ():
                if word.startswith("tests") or word.endswith(".py"):
                    assert (ROOT / word.partition("::")[0]).exists(), line

    def test_commands_in_shell_snippets_exist(
        self, document: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for line in _commands(document):
            words = shlex.split(line, comments=True)
            if "stream-sttm" in words[:1]:
                with pytest.raises(SystemExit) as ended:
                    main([words[1], "--help"])
                assert ended.value.code == 0, line
                told = capsys.readouterr().out
                for option in (word for word in words if word.startswith("--")):
                    assert option.partition("=")[0] in told, line

    def test_configurations_load(
        self, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for text in blocks(document, "yaml", "yml"):
            if "streams:" not in text:
                continue
            for name in re.findall(r"\$\{(\w+)\}", text):
                monkeypatch.setenv(name, "x")
            path = tmp_path / "config.yaml"
            path.write_text(text)
            load(path, check=faults_of)

    def test_python_snippets_parse(self, document: Path) -> None:
        for text in blocks(document, "python", "py"):
            ast.parse(text)

    def test_json_snippets_parse(self, document: Path) -> None:
        for text in blocks(document, "json"):
            if "..." not in text:
                json.loads(text)


def _commands(document: Path) -> list[str]:
    """The lines of the document's shell snippets, continued ones joined."""
    text = "\n".join(blocks(document, "sh", "bash", "shell")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _all_commands(document: Path) -> list[str]:
    """The document's shell lines, and its inline code that begins like one."""
    inline = re.findall(r"`((?:make|python3?|pytest) [^`]+)`", outside_fences(document))
    return [*_commands(document), *inline]


def _given(document: Path) -> set[str]:
    """Files that the document itself has the reader write: a block that begins with '# name'."""
    return set(re.findall(r"^ *```\w+\n *# ([\w.-]+)\n", document.read_text(), re.M))


def test_there_are_documents_to_check() -> None:
    expected = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/develop/architecture.md")
    assert {ROOT / name for name in expected} <= set(DOCUMENTS)


@pytest.mark.parametrize(("name", "most"), MOST_LINES.items())
def test_a_first_page_is_short(name: str, most: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_sentences_are_short() -> None:
    spoken = [(path, words) for path in READ for words in sentences(path.read_text())]
    long = [
        f"{path.relative_to(ROOT)}, {len(words)} words: {' '.join(words)}"
        for path, words in spoken
        if len(words) > MOST_WORDS
    ]
    assert not long, "\n".join(long)
    assert mean(len(words) for _, words in spoken) <= MEAN_WORDS


def test_every_page_is_in_the_navigation() -> None:
    listed = list(_pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) >= {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}


def _pages_of(nav: object) -> Iterator[str]:
    """The files that a part of mkdocs.yml's `nav` names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        yield from _pages_of(list(nav.values()))
    elif isinstance(nav, list):
        for part in nav:
            yield from _pages_of(part)


# --- the measure of sentences


@pytest.mark.parametrize(
    ("markdown", "lengths"),
    [
        pytest.param("One two. Three four five!", [2, 3], id="two sentences"),
        pytest.param("One\ntwo three.", [3], id="wrapped"),
        pytest.param("One two\n\nthree", [2, 1], id="a paragraph ends one"),
        pytest.param("- one two\n- three\n  four five\n1. six", [2, 3, 1], id="an item ends one"),
        pytest.param("Read:\n- one. Two three.", [1, 1, 2], id="an item begins one"),
        pytest.param("Use e.g. this one, i.e. it (cf. that).", [8], id="abbreviations"),
        pytest.param("It took 1.5 s. Then v2.0.1 came.", [4, 3], id="dots in numbers"),
        pytest.param("Call `a.b(c, d)`. Then `e f. G`, ``g`h``.", [2, 3], id="code is a word"),
        pytest.param("See [the two pages](a/b.md). [More][ref]!", [4, 1], id="links"),
        pytest.param("[ref]: https://example.org/a", [], id="link definition"),
        pytest.param("![a picture. Of two](a.png) One.", [1], id="image"),
        pytest.param("# One two\n\nThree.\n\n## Four", [1], id="headings"),
        pytest.param("| a b | c. d |\n|---|---|\n| e | f |\n\nOne.", [1], id="table"),
        pytest.param("One.\n```sh\nmake it. so\n```\nTwo three.", [1, 2], id="fenced code"),
        pytest.param("- one\n  ```yaml\n  a: b. c\n  ```\n- two", [1, 1], id="fence in an item"),
        pytest.param("````md\n```\na b\n```\nc\n````\nOne.", [1], id="fence in a fence"),
        pytest.param("One <b>two</b>. <!-- three.\nfour. --> Five.", [2, 1], id="HTML"),
        pytest.param("<p>One</p>\n<br>\nTwo <https://a.b>.", [1, 1], id="tags and addresses"),
        pytest.param("> One two.\n> Three.", [2, 1], id="quotation"),
        pytest.param("**One two.** Three (four.) Five", [2, 2, 1], id="closing marks"),
        pytest.param("One - two — three.", [3], id="dashes are no words"),
        pytest.param("---\n\nOne.\n\n***", [1], id="rules"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_sentences_are_counted_as_people_read_them(markdown: str, lengths: list[int]) -> None:
    assert [len(words) for words in sentences(markdown)] == lengths


def test_sentences_keep_their_words() -> None:
    told = sentences("# Title\n\nThe *first* one, `x = 1`. See [this](a.md).\n\n| no | no |\n")
    assert told == [["The", "*first*", "one,", "CODE."], ["See", "this."]]
