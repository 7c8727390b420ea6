"""The process that tries out grammars: `python -m stream_sttm.engine.answering.grammar_child`.

It reads a vocabulary and then one JSON schema a line, and writes for each what is wrong with it. Each is compiled in a
fork with limits of its own, so one that takes too much ends nothing but that fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stream_sttm.engine.answering import grammars
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import AnswerType, Form

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

TOO_COSTLY = (
    "json_schema: takes too much time or memory to be made a grammar; "
    "use fewer or simpler pattern, allOf, anyOf and $ref"
)
READY = "ready"
_CPU_SECONDS = 0.2  # that a grammar may take
_BYTES = 50_000_000  # that it may take
_CPU_LIMIT = 1  # seconds after which the system ends a trial
_BYTES_LIMIT = 256_000_000
_WALL_LIMIT = 5.0  # seconds
_TOKENS = 8  # of an answer that are tried out


def main() -> None:
    """Try out one schema after the other until the input ends."""
    os.nice(10)
    tokens = grammars.Vocabulary.from_json(sys.stdin.readline()).tokens()
    _tell(READY)
    for line in sys.stdin:
        _tell(json.dumps({"fault": _trial(tokens, json.loads(line))}))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _trial(tokens: LLTokenizer, schema: str) -> str:
    """Return what is wrong with a schema, empty where nothing is."""
    reading, writing = os.pipe()
    fork = os.fork()
    if not fork:
        try:
            _limit()
            os.write(writing, json.dumps(_fault_of(tokens, schema)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(fork, 0)
    return str(json.loads(told)) if told else TOO_COSTLY


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT, _CPU_LIMIT))
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        pages = int(sizes.read_text().split()[0])
        most = pages * resource.getpagesize() + _BYTES_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_REAL, _WALL_LIMIT)


def _fault_of(tokens: LLTokenizer, schema: str) -> str:
    seconds, peak = time.process_time(), _peak()
    try:
        matcher = grammars.compiled(tokens, Form(AnswerType.JSON, (), schema))
        _write_some(matcher, tokens.vocab_size)
    except QuestionRejected as error:
        fault = str(error)
    else:
        fault = ""
    is_costly = time.process_time() - seconds > _CPU_SECONDS or _peak() - peak > _BYTES
    return TOO_COSTLY if is_costly else fault[:1000]


def _write_some(matcher: LLMatcher, vocabulary: int) -> None:
    """Write the beginning of an answer, because much of a grammar is compiled only when it is used."""
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    bits = allocate_token_bitmask(1, vocabulary)
    for _ in range(_TOKENS):
        fill_next_token_bitmask(matcher, bits)
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:vocabulary].nonzero()[0]
        if matcher.is_error() or not len(allowed):
            reason = grammars.first_line(matcher.get_error())
            raise QuestionRejected(f"json_schema: no answer can follow it: {reason}")
        matcher.consume_token(int(allowed[0]))
        if matcher.is_stopped():
            return


def _peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
