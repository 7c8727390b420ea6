"""The repository's layout: how many files lie where, no import circles, and who may know the engine."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
# Files of one name are faces of one subject: the HTTP routes of something, its storage, its settings, its worker.
SHARED = {
    "additions": "streams and queries added over HTTP: stored, routed, applied",
    "answers": "stored answers: the table and its routes",
    "checkpoints": "saved memories",
    "control": "changes while running: the worker and its routes",
    "events": "events: the table and its routes",
    "outbox": "items that wait for a sink: the table and the worker",
    "probe": "trying out a source: the function and its route",
    "scene": "the drawn camera as a source",
    "service": "the running service: its interface and its class",
    "whip": "publishing by WHIP: the source and its routes",
}


def _modules(folder: str) -> list[str]:
    return [path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]


def _folders(folder: str) -> list[str]:
    return [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]


def test_the_package_shows_few_modules_and_few_folders() -> None:
    assert len(_modules("stream_sttm")) <= 10
    assert len(_folders("stream_sttm")) <= 14
    assert not list((ROOT / "stream_sttm").glob("*config.py"))


@pytest.mark.parametrize(
    ("folder", "most"),
    [("stream_sttm/engine", 16), ("stream_sttm/sources", 8), ("stream_sttm/sinks", 6)],
)
def test_a_folder_holds_few_files(folder: str, most: int) -> None:
    assert sum(path.is_file() for path in (ROOT / folder).iterdir()) <= most


def test_files_of_one_name_have_one_subject() -> None:
    places = defaultdict(list)
    for package in ("stream_sttm", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            if path.stem != "__init__":
                places[path.stem].append(path.relative_to(ROOT).as_posix())
    assert {stem for stem, paths in places.items() if len(paths) > 1} <= set(SHARED), places


def test_no_module_imports_itself_through_others() -> None:
    """Imports for types alone count too."""
    graph = grimp.build_graph("stream_sttm", "workers", exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_workers_know_the_engine_through_its_host_alone() -> None:
    """The plain records of outcomes apart."""
    knows = set()
    for path in (ROOT / "workers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(
                name.startswith("stream_sttm.engine") and name != "stream_sttm.engine.outcomes"
                for name in names
            ):
                knows.add(path.name)
    assert knows == {"engine_host.py"}
