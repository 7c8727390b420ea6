"""The live feed: everyone sees everything in order, nobody is waited for."""

from __future__ import annotations

import asyncio

from stream_sttm import metrics
from stream_sttm.api.feed import Feed, FeedEvent, Subscription
from tests.support.answers import make_answer, make_status


def publish(feed: Feed, *numbers: int) -> None:
    for number in numbers:
        feed.publish(make_answer(number=number), published_at=0.0)


async def rest(subscription: Subscription) -> list[FeedEvent]:
    return [event async for event in subscription]


def ids(events: list[FeedEvent]) -> list[str]:
    return [event["id"] for event in events]


async def test_every_reader_sees_every_event_in_order() -> None:
    feed = Feed()
    async with feed.subscribe() as one, feed.subscribe() as two:
        publish(feed, 1, 2, 3)
        feed.close()
        assert ids(await rest(one)) == ids(await rest(two)) == ["q1", "q2", "q3"]


async def test_answers_and_statuses_say_what_they_are_and_numbers_rise() -> None:
    feed = Feed()
    async with feed.subscribe() as subscription:
        answer, status = make_answer(), make_status()
        feed.publish(answer, published_at=answer.answered_at)
        feed.publish(status, published_at=0.0)
        first, second = await anext(subscription), await anext(subscription)
    assert first == {
        "type": "answer",
        "event": first["event"],
        **answer.as_dict(published_at=answer.answered_at),
    }
    assert second == {"type": "status", "event": first["event"] + 1, **status.as_dict()}


async def test_slow_reader_loses_the_oldest_counted_and_delays_nobody() -> None:
    feed = Feed(capacity=3)
    before = metrics.FEED_DROPPED._value.get()
    async with feed.subscribe() as slow:
        async with feed.subscribe() as quick:
            seen = []
            for number in range(10):
                publish(feed, number)
                seen.append(await anext(quick))
        feed.close()
        assert len(seen) == 10
        assert ids(await rest(slow)) == ["q7", "q8", "q9"]
        assert slow.dropped == 7
    assert metrics.FEED_DROPPED._value.get() - before == 7


async def test_reader_waits_for_what_comes_later() -> None:
    feed = Feed()
    async with feed.subscribe() as subscription, asyncio.TaskGroup() as group:
        reading = group.create_task(rest(subscription))
        await asyncio.sleep(0)
        publish(feed, 1)
        feed.close()
    assert ids(reading.result()) == ["q1"]


async def test_reader_goes_on_after_the_number_it_saw_last() -> None:
    feed = Feed(history=4)
    async with feed.subscribe() as subscription:
        publish(feed, 1, 2, 3)
        first = await anext(subscription)
    publish(feed, 4)
    feed.close()
    async with feed.subscribe(after=first["event"]) as again:
        assert ids(await rest(again)) == ["q2", "q3", "q4"]
    async with feed.subscribe(after=0) as all_remembered:
        assert ids(await rest(all_remembered)) == ["q1", "q2", "q3", "q4"]
    async with feed.subscribe() as from_now:
        assert await rest(from_now) == []


async def test_numbers_rise_over_a_restart_so_an_old_number_hides_nothing() -> None:
    old = Feed()
    async with old.subscribe() as subscription:
        publish(old, 1)
        last = (await anext(subscription))["event"]
    await asyncio.sleep(0.005)  # a process takes longer than that to start
    new = Feed()
    publish(new, 2)
    new.close()
    async with new.subscribe(after=last) as again:
        assert ids(await rest(again)) == ["q2"]


async def test_reader_that_left_is_forgotten() -> None:
    feed = Feed()
    async with feed.subscribe():
        pass
    assert not feed._subscriptions


async def test_closed_feed_ends_readers_old_and_new_and_takes_no_more() -> None:
    feed = Feed()
    feed.close()
    publish(feed, 1)
    async with feed.subscribe(after=0) as subscription:
        assert await rest(subscription) == []
