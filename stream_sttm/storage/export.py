"""Stored answers as text for other programs: JSON Lines, which loses nothing, or CSV for spreadsheets.

Both are generators, so a whole store is never in memory at once. Knows nothing of where answers come from.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stream_sttm.storage.sql_answers import COLUMNS, JSON_COLUMNS

CSV_COLUMNS = ("seq", *COLUMNS)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet's formula may begin


def jsonl(answers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line of JSON per answer."""
    for answer in answers:
        yield json.dumps(dict(answer), ensure_ascii=False, allow_nan=False) + "\n"


def csv_lines(answers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a header and one record per answer, with lists and maps as JSON.

    A text that a spreadsheet would run as a formula gets an apostrophe in front. What a camera sees is not trusted.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(CSV_COLUMNS)
    yield buffer.getvalue()
    for answer in answers:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow([_cell(name, answer[name]) for name in CSV_COLUMNS])
        yield buffer.getvalue()


def _cell(name: str, value: Any) -> Any:
    if name in JSON_COLUMNS:
        value = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, str) and value.startswith(_FORMULA):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value
