"""Frigate's messages: what is newly seen, what is not new, and garbage told in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sttm.errors import NotASighting
from stream_sttm.queries.frigate import MAX_PAYLOAD, Sighting, sighting


def an_event(kind: str, label: str = "person", before: str | None = None, **more: Any) -> bytes:
    """As in Frigate's documentation of `frigate/events`, without the fields nobody here reads."""
    side = {"id": "1607123955.475377-mxklsc", "camera": "front_door", "frame_time": 1607123961.8,
            "sub_label": None, "top_score": 0.958984375, "false_positive": False,
            "start_time": 1607123955.475377, "end_time": None, "box": [424, 500, 536, 712],
            "current_zones": ["driveway"], "has_snapshot": False}  # fmt: skip
    sides = {
        "before": {**side, "label": before or label},
        "after": {**side, "label": label, **more},
    }
    return json.dumps({"type": kind, **sides}).encode()


def a_review(kind: str, objects: list[str], before: list[str] | None = None) -> bytes:
    """The same of `frigate/reviews`."""
    side = {"id": "1718987129.308396-fqk5ka", "camera": "front_door", "severity": "alert",
            "start_time": 1718987129.308396, "end_time": None, "thumb_path": "/media/x.webp"}  # fmt: skip
    return json.dumps(
        {
            "type": kind,
            "before": {**side, "data": {"objects": objects if before is None else before}},
            "after": {**side, "data": {"detections": [], "objects": objects, "zones": []}},
        }
    ).encode()


def seen(*labels: str) -> Sighting:
    return Sighting("front_door", frozenset(labels))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (an_event("new"), seen("person")),
        (an_event("update"), None),
        (an_event("update", "Dog", before="cat"), seen("dog")),
        (an_event("end"), None),
        (an_event("new", false_positive=True), None),
        (a_review("new", ["person", "car"]), seen("person", "car")),
        (a_review("update", ["person", "car"], before=["person"]), seen("car")),
        (a_review("update", ["person-verified"], before=["person"]), None),
        (a_review("update", ["person"]), None),
        (a_review("end", ["person"]), None),
        (a_review("genai", ["person"]), None),
        (a_review("new", []), seen()),
    ],
)
def test_only_what_is_new_is_a_sighting(payload: bytes, expected: Sighting | None) -> None:
    assert sighting(payload) == expected


def test_an_object_that_turns_out_to_be_real_is_new() -> None:
    told = json.loads(an_event("update"))
    told["before"]["false_positive"] = True
    assert sighting(json.dumps(told).encode()) == seen("person")


@pytest.mark.parametrize(
    ("triggers", "calls"),
    [
        (["frigate:person"], True),
        (["manual", "frigate:car", "frigate:person"], True),
        (["frigate"], True),
        (["frigate:car"], False),
        (["manual", "change"], False),
        ([], False),
    ],
)
def test_a_query_answers_to_the_labels_it_names(triggers: list[str], calls: bool) -> None:
    assert seen("person").calls_for(triggers) is calls


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "the message is not a map"),
        (b"{}", "none of new, update, end"),
        (b'{"type": "new"}', "after is not a map"),
        (b'{"type": "new", "after": {"label": "person"}}', "after.camera is not a short text"),
        (b'{"type": "new", "after": {"camera": "a", "label": 7}}', "label is not a short text"),
        (b'{"type": "new", "after": {"camera": "a"}}', "data is not a map"),
        (b'{"type": "new", "after": {"camera": "a", "data": {}}}', "data.objects is not a list"),
        (b" " * (MAX_PAYLOAD + 1), "bytes"),
    ],
)
def test_garbage_is_told_in_a_line(payload: bytes, line: str) -> None:
    with pytest.raises(NotASighting, match=line) as raised:
        sighting(payload)
    assert "\n" not in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "after", "before", "camera", "label", "data", "objects"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=50) | JSON.map(lambda tree: json.dumps(tree).encode()))
def test_nothing_that_may_be_sent_is_more_than_a_line(payload: bytes) -> None:
    line = ""
    try:
        sighting(payload)
    except NotASighting as error:
        line = str(error)
    assert "\n" not in line
