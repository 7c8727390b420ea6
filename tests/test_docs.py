"""What documents, board and rules name exists: metrics, labels, files, make targets, commands, configurations."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY, Metric
from prometheus_client.metrics import MetricWrapperBase

from stream_sttm import metrics
from stream_sttm.config.loading import load
from tests.support.dashboard import BOARD, QUERIES
from workers.cli import main
from workers.config_check import faults_of

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "bench/*.md", "deploy/*.md", "stream_sttm/**/*.md")
    for path in ROOT.glob(pattern)
)
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


def blocks(document: Path, language: str) -> Iterator[str]:
    """The code of the document's fences of one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestDocument:
    """Every document at hand."""

    def test_links_lead_to_files(self, document: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if not re.match(r"[a-z]+:|#", target):
                path = document.parent / target.partition("#")[0]
                assert path.exists(), f"{document.name} links to {target}"

    def test_paths_in_backticks_exist(self, document: Path) -> None:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
        for word in re.findall(r"`([\w./-]+\.(?:py|md|yaml|json|toml|txt))`", text):
            if not ("/" in word or word.endswith(".py")) or "yours" in word:
                continue  # a name by itself may mean any file of that name
            bases = (ROOT, document.parent, ROOT / "stream_sttm", ROOT / "tests")
            assert any((base / word).exists() for base in bases), f"{document.name}: {word}"

    def test_files_in_shell_snippets_exist(self, document: Path) -> None:
        for line in _commands(document):
            for word in shlex.split(line, comments=True):
                if re.fullmatch(r"[\w./-]+\.(yaml|yml|py|json|txt|sh|md|toml)", word):
                    known = (ROOT / word).exists() or (document.parent / word).exists()
                    assert known or word in _given(document), f"{document.name}: {line}"

    def test_make_targets_in_shell_snippets_exist(self, document: Path) -> None:
        rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        for line in _commands(document):
            if (words := shlex.split(line, comments=True))[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= set(rules), line

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
        for text in blocks(document, "yaml"):
            if "streams:" not in text:
                continue
            for name in re.findall(r"\$\{(\w+)\}", text):
                monkeypatch.setenv(name, "x")
            path = tmp_path / "config.yaml"
            path.write_text(text)
            load(path, check=faults_of)


def _commands(document: Path) -> list[str]:
    """The lines of the document's shell snippets, continued ones joined."""
    text = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _given(document: Path) -> set[str]:
    """Files that the document itself has the reader write: a block that begins with '# name'."""
    return set(re.findall(r"^```\w+\n# ([\w.-]+)\n", document.read_text(), re.M))


def test_there_are_documents_to_check() -> None:
    assert ROOT / "README.md" in DOCUMENTS
