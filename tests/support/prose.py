"""The sentences of a Markdown document, so that tests can count their words."""

from __future__ import annotations

import re
from collections.abc import Iterator

ABBREVIATIONS = frozenset(("e.g.", "i.e.", "etc.", "cf.", "vs.", "approx.", "resp."))

_FENCE = re.compile(r"(`{3,}|~{3,})")
_ITEM = re.compile(r"(?:[-*+]|\d+[.)])\s+(?:\[[ xX]\]\s+)?")  # a task list's box included
_NO_PROSE = re.compile(r"#{1,6}\s|\||!!!|\?\?\?|\[[^\]]+\]:\s|(?:<[^>]+>\s*)+$|(?:[-*_]\s*){3,}$")
_CLOSING = "\"')]*_"  # what may stand between a sentence's last mark and the space behind it


def sentences(markdown: str) -> list[list[str]]:
    """Return the words of each sentence of a document's prose, in order.

    Left out are fenced code, tables, headings, HTML tags, images and the targets of links; a link's own text counts.
    Inline code is one word, whatever is in it. A sentence ends at a full stop, question or exclamation mark before a
    space, unless this is the dot of an abbreviation, and at the end of its paragraph, list item or quotation.
    """
    return [words for block in _blocks(markdown) for words in _split(_plain(block)) if words]


def _blocks(markdown: str) -> Iterator[str]:
    """Paragraphs and list items, each in one line."""
    block: list[str] = []
    for line in [*_prose_lines(re.sub(r"<!--.*?-->", "", markdown, flags=re.S)), ""]:
        item = _ITEM.match(line)
        if block and (not line or item):
            yield " ".join(block)
            block = []
        if line:
            block.append(line[item.end() :] if item else line)


def _prose_lines(markdown: str) -> Iterator[str]:
    """Return the document's lines without indentation; an empty one for each that is no prose."""
    fence = ""
    for raw in markdown.splitlines():
        line = re.sub(r"^(?:>\s?)+", "", raw.strip()).strip()
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line == mark[1]:
                fence = ""
            yield ""
        elif mark:
            fence = mark[1]
            yield ""
        else:
            yield "" if _NO_PROSE.match(line) else line


def _plain(text: str) -> str:
    """Return a block without its markup."""
    text = re.sub(r"(`+)(.+?)\1", "CODE", text)
    text = re.sub(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])", "", text)
    text = re.sub(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    return re.sub(r"<[^>\s][^>]*>", "", text)


def _split(text: str) -> Iterator[list[str]]:
    """Return the words of each sentence of a block; what has no letter or digit, such as a dash, is no word."""
    words: list[str] = []
    for word in text.split():
        if any(letter.isalnum() for letter in word):
            words.append(word)
        bare = word.rstrip(_CLOSING)
        if bare.endswith((".", "!", "?")) and bare.lstrip(_CLOSING + "([").lower() not in (
            ABBREVIATIONS
        ):
            yield words
            words = []
    yield words
