"""The service as tools for language models, used by the protocol's own client over standard input and output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.api.events import routes as event_routes
from stream_sttm.storage.events import EventLog
from tests.support.answers import make_event
from tests.support.api_server import Served, serving

mcp = pytest.importorskip("mcp", reason="needs the extra mcp")
TOKEN = "a-token-of-täsT"


def launched(served: Served, token: str) -> Any:
    url = f"http://127.0.0.1:{served.port}"
    arguments = ["-m", "workers.cli", "mcp", "--url", url, "--token-env", "MY_TOKEN"]
    folder = str(Path(__file__).parents[2])
    return mcp.StdioServerParameters(
        command=sys.executable, args=arguments, env={"MY_TOKEN": token}, cwd=folder
    )


def content(result: Any) -> Any:
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


async def test_tools_list_ask_and_tell_events(tmp_path: Path) -> None:
    async with serving(tmp_path, token=TOKEN) as served:
        log = EventLog(served.store.file)
        served.app.include_router(event_routes(log))
        log.add(make_event(stream="door"), published_at=0.0)
        async with mcp.Client(launched(served, TOKEN)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"list_streams", "ask", "recent_events"}
            assert tools["ask"].input_schema["required"] == ["stream", "question"]
            streams = content(await client.call_tool("list_streams", {}))["streams"]
            assert [one["stream"] for one in streams] == ["door", "yard"]
            asked = {"stream": "door", "question": "Wer ist da? 😀"}
            assert content(await client.call_tool("ask", asked))["answer"] == "Wer ist da? 😀"
            asked |= {"answer_type": "choice", "choices": ["open", "shut"], "window_s": 5}
            await client.call_tool("ask", asked)
            assert served.service.asked[-1].form.choices == ("open", "shut")
            events = content(await client.call_tool("recent_events", {"stream": "door"}))
            assert [event["id"] for event in events["events"]] == ["e1"]
            refused = await client.call_tool("ask", {"stream": "dor", "question": "Who?"})
            assert refused.is_error
            assert "did you mean 'door'" in refused.content[0].text


async def test_refusal_of_a_token_is_one_line(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, token=TOKEN) as served,
        mcp.Client(launched(served, "wrong")) as client,
    ):
        refused = await client.call_tool("list_streams", {})
        assert refused.is_error
        assert "bearer token is needed" in refused.content[0].text
        assert "wrong" not in refused.content[0].text
