"""Tries out JSON schemas in a process of its own, so that no schema can hold up or end this one.

Its calls wait. They belong neither in the engine's thread nor on an event loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Timer

from stream_sttm.engine.answering.grammars import Vocabulary
from stream_sttm.errors import ModelError, QuestionRejected

_CHILD = (sys.executable, "-m", "stream_sttm.engine.answering.grammar_child")
_START_WITHIN = 60.0  # seconds; a large vocabulary is read first
_ANSWER_WITHIN = 10.0  # seconds; it ends each trial by itself before
_NO_RESULT = "json_schema: could not be made a grammar in time; make it smaller"


class GrammarProcess:
    """The process, started with the first schema and anew where it ended. `vocabulary` is the model's."""

    def __init__(
        self, vocabulary: Callable[[], Vocabulary], *, command: tuple[str, ...] = _CHILD
    ) -> None:
        self._vocabulary, self._command = vocabulary, command
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()
        self._is_closed = False

    def check(self, schema: str) -> None:
        """Raise QuestionRejected where a schema can't be made a grammar at a small cost.

        Raises ModelError where the process can't be started.
        """
        with self._lock:
            process = self._process or self._start()
            told = _exchange(process, json.dumps(schema), _ANSWER_WITHIN)
            if not told:
                self._end()
                raise QuestionRejected(_NO_RESULT)
        if fault := json.loads(told)["fault"]:
            raise QuestionRejected(fault)

    def close(self) -> None:
        """End the process for good, whatever it is doing."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[str]:
        if self._is_closed:
            raise ModelError("the service is stopping; ask again when it is back")
        vocabulary = self._vocabulary().to_json()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if not _exchange(self._process, vocabulary, _START_WITHIN):
            self._end()
            raise ModelError("the process that tries out JSON schemas does not start; ask again")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what is left to write goes nowhere
                if pipe is not None:
                    pipe.close()


def _exchange(process: subprocess.Popen[str], line: str, within: float) -> str:
    """Write a line and return the line that answers it, empty where none comes in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = Timer(within, process.kill)
    timer.start()
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""
    finally:
        timer.cancel()
