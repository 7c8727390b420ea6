"""The command line: stream-sttm serve, ask, check, token, discover, demo, mcp."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import ValidationError

from stream_sttm import __version__
from stream_sttm.api.auth import new_token
from stream_sttm.config.http import Scope, TokenSettings
from stream_sttm.config.loading import load
from stream_sttm.config.settings import Settings
from stream_sttm.errors import ConfigError, SourceError, StreamSTTMError
from stream_sttm.types import AnswerType
from workers.repeated_logs import OnceAMinute
from workers.signals import Stop, until_stopped

_log = logging.getLogger("stream_sttm")
ENGINE_THREAD = "engine"  # how workers/local.py names the thread that computes
_QUIET = (
    "httpx", "httpcore", "aiortc", "aioice", "libav", "uvicorn", "amqtt", "transitions", "asyncio",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 success, 1 failure, 2 where another try can't help."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except StreamSTTMError as error:
        print(f"stream-sttm: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    if any(thread.name.startswith(ENGINE_THREAD) for thread in threading.enumerate()):
        # All else is closed; the interpreter would wait for a model that is still being fetched or computing.
        sys.stdout.flush()
        os._exit(status)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stream-sttm", description="Live video that answers questions."
    )
    parser.add_argument("--version", action="version", version=f"stream-sttm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="watch the configured streams and answer")
    serve.add_argument("--config", required=True, metavar="FILE", help="the configuration, YAML")
    serve.add_argument(
        "--port", type=int, help="HTTP port instead of the configured one; 0 takes a free one"
    )
    serve.set_defaults(run=_serve)

    ask = commands.add_parser("ask", help="ask a running service one question")
    ask.add_argument("stream", help="name of the stream")
    ask.add_argument("question", help="the question, in words")
    ask.add_argument(
        "--type",
        choices=[kind.value for kind in AnswerType],
        default="text",
        help="what it answers",
    )
    ask.add_argument("--choice", action="append", default=[], help="what to choose from; repeat it")
    _add_service(ask)
    ask.set_defaults(run=_ask)

    token = commands.add_parser("token", help="make a bearer token, and what to configure for it")
    token.add_argument("name", help="who is to hold it")
    token.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="what it allows; repeat it; read and ask if left out",
    )
    token.add_argument(
        "--stream", action="append", help="a stream that it is limited to; repeat it"
    )
    token.set_defaults(run=_token)

    check = commands.add_parser("check", help="report every fault of a configuration at once")
    check.add_argument("config", metavar="FILE")
    check.set_defaults(run=_check)

    discover = commands.add_parser(
        "discover", help="look for ONVIF cameras and print them as configuration"
    )
    discover.add_argument(
        "--seconds", type=_seconds, default=3.0, help="how long to wait for answers"
    )
    discover.add_argument("--user", default="", help="user name on the cameras")
    discover.add_argument(
        "--password-env",
        default="CAMERA_PASSWORD",
        metavar="NAME",
        help="environment variable that holds the password; printed by its name only",
    )
    discover.set_defaults(run=_discover)

    demo = commands.add_parser(
        "demo", help="a drawn camera, watched and answered, with the truth beside each answer"
    )
    demo.add_argument(
        "--seconds", type=_seconds, help="end after so long; without it, run until Ctrl-C"
    )
    demo.add_argument("--mqtt", metavar="URL", help="a broker to use instead of the embedded one")
    demo.add_argument(
        "--port", type=_port, default=8080, help="port of the page; 0 takes a free one"
    )
    demo.add_argument("--seed", type=int, default=7, help="which drawn world")
    demo.set_defaults(run=_demo)

    mcp = commands.add_parser("mcp", help="a running service as tools for language models (MCP)")
    _add_service(mcp)
    mcp.set_defaults(run=_mcp)
    return parser


def _add_service(command: argparse.ArgumentParser) -> None:
    """Add the options that say where a running service is."""
    command.add_argument("--url", default="http://127.0.0.1:8080", help="where the service listens")
    command.add_argument(
        "--token-env",
        default="STREAM_STTM_TOKEN",
        metavar="NAME",
        help="environment variable that holds the bearer token, if one is needed",
    )


def _seconds(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time to run; give a number above 0")
    return float(text)


def _port(text: str) -> int:
    if not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give one from 0 to 65535")
    return int(text)


def _settings(path: str, **overrides: Any) -> Settings:
    from workers.config_check import faults_of

    given = {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    return load(path, overrides=given, check=faults_of)


def _serve(options: argparse.Namespace) -> int:
    stop = Stop()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a configuration to read anew
    from workers import local
    from workers.config_watch import ConfigFile

    load = partial(_settings, options.config, http__port=options.port)
    file = ConfigFile(options.config, load)
    settings = load()
    _log_to_stderr(settings.log_level)
    if settings.model_note is not None:
        _log.warning("%s", settings.model_note)

    def listening(port: int) -> None:
        _log.info("listening on http://%s:%d", settings.http.host, port)

    return until_stopped(stop, local.run(settings, ready=listening, file=file))


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options.config)
    print(
        f"{options.config}: fine: {len(settings.streams)} streams, {len(settings.queries)} queries, "
        f"{len(settings.sinks)} sinks, model {settings.model}"
    )
    if settings.model_note is not None:
        print(f"{options.config}: warning: {settings.model_note}", file=sys.stderr)
    return 0


def _ask(options: argparse.Namespace) -> int:
    import httpx

    token = os.environ.get(options.token_env)
    try:
        reply = httpx.post(
            f"{options.url.rstrip('/')}/api/v1/ask",
            json={
                "stream": options.stream,
                "question": options.question,
                "type": options.type,
                "choices": options.choice,
            },
            headers={b"authorization": f"Bearer {token}".encode()} if token else {},
            timeout=60,
        )
        body = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise StreamSTTMError(
            f"{options.url} does not answer as stream-sttm does: {reason}"
        ) from error
    if reply.is_error:
        raise StreamSTTMError(str(body.get("error", reply.reason_phrase)))
    sure = body["confidence"]
    print(body["answer"] if sure is None else f"{body['answer']} ({100 * sure:.0f} %)")
    return 0


def _token(options: argparse.Namespace) -> int:
    token, hashed = new_token()
    entry: dict[str, object] = {"name": options.name, "hash": hashed}
    if options.scope:
        entry["scopes"] = options.scope
    if options.stream:
        entry["streams"] = options.stream
    try:
        TokenSettings.model_validate(entry)
    except ValidationError as error:
        raise ConfigError(f"token: {error.errors()[0]['msg']}") from error
    print(
        f"The token, which is shown this once: {token}\n\nFor the configuration:\n", file=sys.stderr
    )
    print(yaml.safe_dump({"http": {"tokens": [entry]}}, sort_keys=False), end="")
    return 0


def _discover(options: argparse.Namespace) -> int:
    from stream_sttm.sources.network import onvif

    login = f"{quote(options.user, safe='')}:${{{options.password_env}}}" if options.user else ""
    password = os.environ.get(options.password_env, "")

    async def look() -> int:
        found: list[tuple[onvif.Camera, Sequence[onvif.Profile] | SourceError]] = []
        for camera in await onvif.cameras(options.seconds):
            try:
                profiles = await onvif.profiles(camera, options.user, password)
            except SourceError as error:
                found.append((camera, error))
            else:
                found.append((camera, profiles))
        if not found:
            print("no ONVIF camera answered; is this machine in their network?", file=sys.stderr)
            return 1
        print(onvif.configuration(found, login))
        return 0

    return asyncio.run(look())


def _mcp(options: argparse.Namespace) -> int:
    try:
        from workers import mcp_server
    except ModuleNotFoundError as error:
        raise ConfigError(f"mcp needs the package {error.name!r}: install the extra mcp") from error
    mcp_server.server(options.url, os.environ.get(options.token_env)).run()
    return 0


def _demo(options: argparse.Namespace) -> int:
    stop = Stop()
    from workers import demo

    _log_to_stderr("warning")
    return until_stopped(
        stop,
        demo.run(seconds=options.seconds, mqtt=options.mqtt, port=options.port, seed=options.seed),
    )


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(OnceAMinute())
    for name in _QUIET:  # other people's logs may show addresses; ours say what matters, masked
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
