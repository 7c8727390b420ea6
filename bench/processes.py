"""What this process and those below it use: CPU time, memory, threads, descriptors, read from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Summed over a process tree; `memory` is the proportional set size in bytes, shared pages counted once."""

    processes: int
    threads: int
    files: int
    memory: int
    cpu_seconds: float


def usage(*, without: Collection[int] = ()) -> Usage:
    """Return what this process and all below it use now, but for the trees of the processes in `without`."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (fields := _fields(folder)) is not None:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    tree, waiting = [], [os.getpid()]
    while waiting:
        pid = waiting.pop()
        if pid not in without:
            tree.append(Path("/proc", str(pid)))
            waiting += parents.get(pid, [])
    return Usage(
        processes=len(tree),
        threads=sum(_count(folder / "task") for folder in tree),
        files=sum(_count(folder / "fd") for folder in tree),
        memory=sum(_memory(folder) for folder in tree),
        cpu_seconds=sum(_cpu(folder) for folder in tree),
    )


def _fields(folder: Path) -> list[str] | None:
    """Return the process's status from its third field on; None where it has just ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _cpu(folder: Path) -> float:
    fields = _fields(folder)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def _memory(folder: Path) -> int:
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
