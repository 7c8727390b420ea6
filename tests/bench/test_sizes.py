"""The bench of packet sizes: what it takes for large, and that it holds looks against pictures."""

from __future__ import annotations

import numpy as np

from bench.sizes import Shown, camera, judge, large, shown


def _still(t, size, kind="P", grey=0.0):
    return Shown(t, np.full((3, 8, 8), grey, np.float32), size, kind)


def test_a_packet_is_large_for_its_kind():
    pictures = [
        _still(i / 10, 5000 if i % 10 == 0 else 100 + i % 3, "IP"[i % 10 > 0]) for i in range(100)
    ]
    pictures.append(_still(10.0, 300))
    pictures.append(_still(10.1, 5000, "I"))
    assert large(pictures, 3.0) == [False] * 100 + [True, False]


def test_a_look_counts_where_the_picture_differs_and_wins_the_time_to_the_next_sample():
    pictures = [_still(i / 10, 100) for i in range(100)]
    for place in range(73, 100):  # something comes into a corner
        seen = pictures[place].picture.copy()
        seen[:, :3, :3] = 200.0
        pictures[place] = Shown(place / 10, seen, 900 if place == 75 else 100, "P")
    pictures[55] = _still(5.5, 900)  # nothing
    found = judge(pictures, 1.0, 3.0)
    assert (found.looks, found.right, found.wrong, found.changed) == (2, 1, 1, 1)
    assert (round(found.could_win, 1), round(found.won, 1)) == (0.7, 0.5)


def test_every_picture_of_a_drawn_camera_has_a_packet():
    pictures = list(shown(camera(3.0, 6.0)))
    assert len(pictures) == 30
    assert {one.kind for one in pictures[1:20]} == {pictures[1].kind} != {pictures[0].kind}
