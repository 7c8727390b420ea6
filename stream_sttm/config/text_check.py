"""Whether a text that somebody sent can be passed on: to tokenizers, grammars, stores, brokers and browsers."""

from __future__ import annotations

import re
from collections.abc import Iterable

NO_UNICODE = "is no valid Unicode; send UTF-8"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all but tab and the ends of lines


def text_fault(texts: Iterable[str]) -> str | None:
    """Return why one of the texts can't be taken, None where all can.

    Half of a surrogate pair, which JSON and YAML can escape, is no text. Stores and brokers refuse NUL.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            return NO_UNICODE
        if found := _CONTROL.search(text):
            return f"has the control character U+{ord(found[0]):04X}; leave it out"
    return None
