"""How FFmpeg is told to open things: plain data that can be handed to another process."""

import json
from dataclasses import asdict

from stream_sttm.sources.network.access import Access
from stream_sttm.sources.network.opening import Opening, prepare


async def test_an_opening_is_plain_data_and_works_the_same_when_it_comes_back(scene_video):
    access = Access(folders=(str(scene_video.parent),))
    opening, gate = await prepare(f"file://{scene_video}", access)
    assert gate is None
    restored = Opening.restored(json.loads(json.dumps(asdict(opening))))
    for each in (opening, restored):
        with each.open({}, None) as container:
            assert sum(1 for _ in container.decode(video=0)) == 40
