"""HTTP serving: addresses, answers, and a stop that does not hang on a long stream."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from cortex_kit.http import serving
from cortex_kit.settings import SettingsError

LIMIT_S = 10.0
START = {"type": "http.response.start", "status": 200, "headers": []}


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"hello"})


async def test_an_app_is_served_on_a_free_port_if_none_is_named() -> None:
    async with serving(hello, "127.0.0.1:0") as port, httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/")

    assert answer.text == "hello"


async def test_after_leaving_the_port_is_free_again() -> None:
    async with serving(hello, "127.0.0.1:0") as port:
        pass

    async with serving(hello, f"127.0.0.1:{port}") as again, httpx.AsyncClient() as client:
        assert again == port
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "hello"


async def test_a_taken_port_is_an_error_that_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(SettingsError, match=f"cannot listen on {address}: Address already in use"):
            async with serving(hello, address):
                raise AssertionError


@pytest.mark.parametrize("listen", ["", "localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"])
async def test_an_address_that_is_none_is_an_error_that_names_it(listen: str) -> None:
    with pytest.raises(SettingsError, match=f"listen = '{listen}'"):
        async with serving(hello, listen):
            raise AssertionError


async def test_a_stream_under_way_is_cancelled_and_cleans_up_when_the_service_stops() -> None:
    cleaned_up = asyncio.Event()

    async def endless(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            await send(START)
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # such as a last word over the bus
            cleaned_up.set()

    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
        async with serving(endless, "127.0.0.1:0", grace_s=0) as port:
            stream = client.stream("GET", f"http://127.0.0.1:{port}/")
            answer = await stream.__aenter__()
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b"piece"

        assert cleaned_up.is_set()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)


async def test_an_answer_under_way_may_end_within_the_grace() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        asked.set()
        await go_on.wait()
        await hello(_scope, _receive, send)

    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
        async with serving(slow, "127.0.0.1:0") as port:
            asking = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
            await asked.wait()
            asyncio.get_running_loop().call_later(0.05, go_on.set)

        assert (await asking).text == "hello"
