"""Facts about the page, seen by a real browser on the real service: drawn cameras, the bundled model, real answers.

`PAGE_SCREENSHOTS=FOLDER` keeps the pictures that are taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser_tab import Tab, browser_tab
from tests.support.publishing_browser import CHROMIUM
from tests.support.service import Service, until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
TOKEN = "open-sesame"
QUERIES = {
    "objects": {"ask": "what objects are there?", "every": 5},
    **{
        colour: {"ask": f"is anything {colour} in view?", "type": "yes_no", "every": 2}
        for colour in ("red", "blue", "green", "yellow")
    },
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two drawn cameras that have been looked at for a while, behind a token."""
    config = {
        "http": {"host": "127.0.0.1", "port": 0, "token": TOKEN},
        "streams": {
            "hall": {"source": "scene://hall?seed=7", "fps": 2},
            "yard": {"source": "scene://yard?seed=3", "fps": 2},
        },
        "queries": {
            name: {"streams": ["hall", "yard"], **query} for name, query in QUERIES.items()
        },
    }
    served = Service(tmp_path_factory.mktemp("service"), **config)
    served.http.headers["Authorization"] = f"Bearer {TOKEN}"
    with served:
        for name in ("hall", "yard"):
            path = f"/api/v1/streams/{name}/mosaic.jpg"
            until(lambda path=path: served.http.get(path).is_success, f"{name} is remembered")
        until(lambda: served.get("/api/v1/events/history")["events"], "something happened")
        yield served


@pytest.fixture(scope="module")
def tab(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The page in a browser, unlocked."""
    with browser_tab(tmp_path_factory.mktemp("browser")) as tab:
        tab.look(1360, 900)
        tab.open(str(service.http.base_url))
        tab.until("!document.getElementById('login').hidden", "the page asks for a token")
        tab.complaints.clear()  # that the first request is refused is how the page learns of the token
        tab.run("document.getElementById('token').focus()")
        tab.write(TOKEN)
        tab.press("Enter", 13)
        submit(tab, "login")
        tab.until("document.querySelectorAll('.stream').length === 2", "the page shows two streams")
        yield tab


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the page go."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _no_complaints(tab: Tab) -> Iterator[None]:
    yield
    tab.run("0")  # what was complained of until now is told before
    complaints, tab.complaints = tab.complaints, []
    assert complaints == []


def submit(tab: Tab, form: str) -> None:
    tab.run(f"document.getElementById('{form}').requestSubmit()")


def fill(tab: Tab, **values: str) -> None:
    """Set fields, as a user who leaves them would."""
    for name, value in values.items():
        field = f"document.getElementById('{name.replace('_', '-')}')"
        tab.run(f"{field}.value = {json.dumps(value)}")
        for event in ("input", "change"):
            tab.run(f"{field}.dispatchEvent(new Event('{event}'))")


def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = tab.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((x) => x.textContent)"
    )
    return found


def test_the_wall_shows_each_stream_online_with_a_moving_picture(tab: Tab) -> None:
    assert texts(tab, ".stream h3") == ["hall", "yard"]
    assert texts(tab, ".stream .pill") == ["online", "online"]
    shown = "[...document.querySelectorAll('.picture img')].filter((x) => x.naturalWidth > 0)"
    tab.until(f"{shown}.length === 2", "both have pictures")
    first = tab.run(f"{shown}[0].src")
    tab.until(f"{shown}[0].src !== {json.dumps(first)}", "the picture is a newer one")


def test_a_question_is_answered_and_its_follow_up_goes_on_with_it(tab: Tab) -> None:
    answers = "document.querySelectorAll('#talk .turn:not([aria-busy]) .facts').length"
    for count, question in enumerate(["what objects are there?", "how many objects are there?"], 1):
        fill(tab, ask_question=question)
        submit(tab, "ask")
        tab.until(f"{answers} === {count}", f"{question} is answered")
    assert texts(tab, "#talk .error") == []
    assert all(texts(tab, "#talk .text"))


def test_a_yes_or_no_question_to_two_streams_shows_how_sure_each_answer_is(tab: Tab) -> None:
    tab.run("document.getElementById('ask-anew').click()")
    tab.run("document.querySelectorAll('#ask-streams input').forEach((x) => { x.checked = true; })")
    fill(tab, ask_type="yes_no", ask_window="10", ask_question="is anything red in view?")
    submit(tab, "ask")
    tab.until("document.querySelectorAll('#talk .said .facts').length === 2", "both answer")
    assert texts(tab, "#talk .who") == ["hall", "yard"]
    assert set(texts(tab, "#talk .said .text")) <= {"yes", "no"}
    assert all("sure" in facts for facts in texts(tab, "#talk .said .facts"))


def test_a_refused_question_says_why(tab: Tab) -> None:
    fill(tab, ask_type="choice", ask_choices="only", ask_question="which?")
    submit(tab, "ask")
    tab.until("document.querySelector('#talk .error')", "it is refused")
    assert "one is no choice" in texts(tab, "#talk .error")[0]
    until(lambda: tab.run("0") == 0 and tab.complaints, "the browser has its own line about it")
    assert "422" in tab.complaints.pop()
    fill(tab, ask_type="text", ask_choices="", ask_window="", ask_question="")
    tab.run("document.getElementById('ask-anew').click()")


def test_the_timeline_has_answers_and_events_with_pictures_and_is_narrowed(tab: Tab) -> None:
    tab.until("document.querySelector('#line .event .snapshot img')", "an event has its picture")
    tab.until("document.querySelector('#line .answer')", "answers are there")
    shown = "#line .entry:not([hidden])"
    fill(tab, line_sort="event")
    assert texts(tab, f"{shown}.event")
    assert not texts(tab, f"{shown}.answer")
    fill(tab, line_sort="", line_stream="yard", line_words="objects")
    tab.until(f"document.querySelector('{shown}')", "an answer of yard is found")
    assert all("yard · objects" in words for words in texts(tab, f"{shown} .question"))
    fill(tab, line_stream="", line_words="")


def test_new_answers_come_by_themselves(tab: Tab) -> None:
    now = tab.run("Date.now() / 1000")
    tab.until(
        f"Number(document.querySelector('#line .entry')?.dataset.at) > {now}", "a new one is on top"
    )
    times = tab.run(
        "[...document.querySelectorAll('#line .entry')].map((x) => Number(x.dataset.at))"
    )
    assert times == sorted(times, reverse=True)


def test_the_mosaic_tiles_the_newest_remembered_frame(tab: Tab, service: Service) -> None:
    tab.run("document.querySelector('.stream .foot button').click()")
    tab.until("document.querySelectorAll('#tiles rect').length > 0", "there are tiles")
    tab.until("document.getElementById('mosaic-picture').naturalWidth > 0", "over a picture")
    area, whole = tab.run(
        "(() => { const box = document.getElementById('tiles').viewBox.baseVal;"
        " const rects = [...document.querySelectorAll('#tiles rect')];"
        " return [rects.reduce((sum, r) => sum + r.width.baseVal.value * r.height.baseVal.value, 0),"
        " box.width * box.height]; })()"
    )
    assert area == whole
    counts = [int(count) for count in texts(tab, ".legend b")]
    assert sum(counts) == tab.run("document.querySelectorAll('#tiles rect').length")
    mosaic = service.get("/api/v1/streams/hall/mosaic")
    assert {tile["kind"] for tile in mosaic["tokens"]} <= {"new", "kept", "absorbed"}
    assert mosaic["after"] < mosaic["before"]


def test_a_standing_query_is_paused_asked_now_and_resumed(tab: Tab, service: Service) -> None:
    def states() -> dict[str, bool]:
        return {one["name"]: one["enabled"] for one in service.get("/api/v1/queries")["queries"]}

    assert sorted(texts(tab, ".query h3")) == sorted(QUERIES)
    switch = "document.querySelector('.query [aria-label=\"Ask objects\"]')"
    tab.run(f"{switch}.click()")
    tab.until(f"{switch}.closest('.query').classList.contains('off')", "it is paused")
    assert not states()["objects"]
    tab.until(f"!{switch}.disabled", "the switch can be thrown again")
    tab.run(f"{switch}.click()")
    tab.until(f"!{switch}.closest('.query').classList.contains('off')", "it is resumed")
    assert states()["objects"]
    tab.run("document.querySelector('.query [aria-label=\"Ask objects now\"]').click()")
    tab.until("document.getElementById('queries-error').textContent === ''", "nothing is refused")


def test_a_standing_query_is_added_asked_and_deleted(tab: Tab, service: Service) -> None:
    tab.until("!document.getElementById('add-query').hidden", "the service takes queries")
    tab.run("document.getElementById('add-query').open = true")
    tab.run("[...document.querySelectorAll('#query-streams input')].map((x) => x.checked = true)")
    fill(tab, query_name="count", query_ask="how many objects are there?", query_every="1")
    fill(tab, query_type="number")
    submit(tab, "query-form")
    row = "document.querySelector('.query [aria-label=\"Delete count\"]')"
    tab.until(row, "it is listed")
    (added,) = (one for one in service.get("/api/v1/queries")["queries"] if one["name"] == "count")
    assert added["streams"] == ["hall", "yard"]
    assert added["type"] == "number"
    offered = tab.run(
        "[...document.querySelectorAll('.query [aria-label^=Delete]')].filter((x) => !x.hidden)"
        ".map((x) => x.getAttribute('aria-label'))"
    )
    assert offered == ["Delete count"]  # what the file holds is only paused
    until(lambda: service.get("/api/v1/answers?query=count")["answers"], "it is asked")
    tab.run(f"window.confirm = () => true; {row}.click()")
    tab.until(f"!{row}", "it is gone")
    left = service.get("/api/v1/queries")["queries"]
    assert sorted(one["name"] for one in left) == sorted(QUERIES)
    tab.run("document.getElementById('add-query').open = false")


def test_a_stream_is_switched_off_and_on_by_keyboard(tab: Tab, service: Service) -> None:
    switch = "document.querySelector('[aria-label=\"Watch yard\"]')"
    for wanted in ("disabled", "online"):
        tab.until(f"!{switch}.disabled", "the switch can be thrown")
        tab.run(f"{switch}.focus()")
        tab.press(" ", 32)
        tab.until(
            f"[...document.querySelectorAll('.stream .pill')][1].textContent === '{wanted}'",
            f"yard is {wanted}",
        )
        until(lambda wanted=wanted: service.state("yard") == wanted, f"yard is {wanted}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1360])
def test_nothing_is_wider_than_the_screen(
    tab: Tab, screenshots: Path, scheme: str, width: int
) -> None:
    tab.look(width, 900 if width > 600 else 780, scheme)
    try:
        tab.run("window.scrollTo(0, 0)")
        tab.until("document.querySelectorAll('.picture img').length === 2", "pictures are there")
        ground = tab.run("getComputedStyle(document.documentElement).backgroundColor")
        picture = tab.shoot(screenshots / f"page-{scheme}-{width}.png")
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert ground == {"light": "rgb(244, 246, 244)", "dark": "rgb(15, 19, 18)"}[scheme]
        assert picture.stat().st_size > 5000
    finally:
        tab.look(1360, 900)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_is_seen_at_once_on_a_large_screen(
    tab: Tab, screenshots: Path, scheme: str
) -> None:
    tab.run("document.getElementById('ask-anew').click()")
    tab.run("[...document.querySelectorAll('#ask-streams input')][1].checked = false")
    fill(tab, ask_type="text", ask_question="what objects are there?", line_sort="news")
    submit(tab, "ask")
    tab.until("document.querySelector('#talk .turn:not([aria-busy]) .facts')", "it is answered")
    tab.run("document.activeElement.blur()")
    tab.look(1280, 1440, scheme)
    tab.until("document.querySelectorAll('#tiles rect').length > 0", "there are tiles")
    if "PAGE_SCREENSHOTS" in os.environ:  # a picture to be shown has something new in it
        tab.until("document.getElementById('count-new').textContent !== '0'", "a new tile")
    seen = tab.run("document.getElementById('queries').getBoundingClientRect().top")
    picture = tab.shoot(screenshots / f"page-{scheme}.png")
    tab.look(1360, 900)
    fill(tab, line_sort="")
    assert seen < 1440
    assert picture.stat().st_size > 50_000


def test_every_field_and_button_has_a_name(tab: Tab) -> None:
    nameless = tab.run(
        "[...document.querySelectorAll('main input, main select, main button')].filter((x) =>"
        " !x.labels?.length && !x.getAttribute('aria-label') && !x.textContent.trim())"
        ".map((x) => x.outerHTML)"
    )
    assert nameless == []
