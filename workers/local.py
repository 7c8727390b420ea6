"""The whole service in one process on one device: ingest, analysis, delivery and gateway under one TaskGroup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stream_sttm.api import whip
from stream_sttm.api.additions import routes as entry_routes
from stream_sttm.api.app import create_app
from stream_sttm.api.control import routes as control_routes
from stream_sttm.api.events import routes as event_routes
from stream_sttm.api.feed import Feed
from stream_sttm.api.probe import routes as trial_routes
from stream_sttm.config.settings import Settings
from stream_sttm.control.additions import Additions, strangers
from stream_sttm.control.switches import Switches
from stream_sttm.sinks import open_sink
from stream_sttm.sources.webrtc.publishers import Publishers
from stream_sttm.storage.backends import events_file, open_outbox, open_store
from stream_sttm.storage.events import EventLog
from workers import delivery, gateway
from workers.additions import LiveAdditions
from workers.config_watch import ConfigFile
from workers.connections import Connections, raise_descriptor_limit
from workers.control import Control
from workers.pipeline import Pipeline
from workers.service import LocalService
from workers.sink_tasks import SinkTasks


async def run(
    settings: Settings,
    *,
    ready: Callable[[int], None] | None = None,
    file: ConfigFile | None = None,
    is_drawn: bool = False,
) -> None:
    """Serve `settings` until cancelled. `ready` is called with the HTTP port once it listens.

    `is_drawn`: every camera shows a drawn scene. Where settings came from a `file`, its changes are followed. Raises
    ConfigError or ModelError where the service can't start. Later, streams, sinks and the store may fail and recover
    without ending it.
    """
    connections = Connections.within(raise_descriptor_limit())
    feed = Feed(most=connections.each // 2)
    store = open_store(settings.store.path)
    own = events_file(store)
    log = EventLog(own, keep_snapshots=settings.store.keep_snapshots)
    additions, switches = Additions(own), Switches(own)
    settings = additions.over(settings)
    reread = None if file is None else lambda: additions.over(file.load())
    control = Control(settings, switches, reread)
    service = LocalService(settings, is_drawn=is_drawn)
    service.control = control
    service.show(settings, control.is_on)
    app = create_app(service, store=store, feed=feed, http=settings.http)
    publishers = Publishers()
    for routes in (
        whip.routes(publishers),
        control_routes(control),
        entry_routes(LiveAdditions(control, additions, switches)),
        trial_routes(lambda: strangers(control.settings.sources), lambda: control.settings.sources),
        event_routes(log, service.event_snapshot),
    ):
        app.include_router(routes)
    opened = partial(open_sink, commands=service)
    sinks = {url: opened(url) for url in settings.sinks}
    limits, outbox = delivery.limits_of(settings), open_outbox(settings)
    sink_tasks = SinkTasks(limits, outbox)
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    try:
        async with publishers, asyncio.TaskGroup() as group:
            group.create_task(
                gateway.run(
                    app,
                    settings.http.host,
                    settings.http.port,
                    ready=ready,
                    closing=feed.close,
                    connections=connections,
                ),
                name="gateway",
            )
            group.create_task(
                delivery.run(
                    service.outbox,
                    store=store,
                    sinks=tuple(sinks.values()),
                    feed=feed,
                    limits=limits,
                    events=log,
                    sink_tasks=sink_tasks,
                ),
                name="delivery",
            )
            pipeline = Pipeline(settings, service, control, log, sink_tasks, sinks, opened, file)
            group.create_task(pipeline.run(thread, publishers), name="watch")
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(own.close)
        if outbox is not None:
            await asyncio.to_thread(outbox.close)
