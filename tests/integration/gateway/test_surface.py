"""Every path answers in the dialect, whatever is asked of it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from builders.gateway import HELLO, GatewayFactory, NeuronFactory, Running
from builders.peers import TINY, FakeScheduler
from conftest import BusFactory


def is_openai_error(body: Any) -> bool:
    return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("route", "content", "status", "code"),
    [
        ("GET /nope", b"", 404, "not_found"),
        ("GET /v1/v1/models", b"", 404, "not_found"),
        ("POST /v1/chat/completions/", b"{}", 404, "not_found"),
        ("GET /v1/chat/completions", b"", 405, "method_not_allowed"),
        ("DELETE /v1/models", b"", 405, "method_not_allowed"),
        ("POST /v1/chat/completions", b"", 400, "invalid_request"),
        ("POST /v1/chat/completions", b"{", 400, "invalid_request"),
        ("POST /v1/chat/completions", b'{"model":"m","messages":[]}', 400, "invalid_request"),
        ("GET /v1/models/nope", b"", 404, "model_not_found"),
    ],
)
async def test_every_error_is_an_openai_error(
    gateway: Running, route: str, content: bytes, status: int, code: str
) -> None:
    response = await gateway.http.request(*route.split(), content=content)

    assert response.status_code == status
    assert is_openai_error(response.json())
    assert response.json()["error"]["code"] == code
    assert response.headers["content-type"] == "application/json"
    assert len(response.headers["x-request-id"]) == 32


async def test_an_unknown_model_is_a_404_and_never_a_label(gateway: Running) -> None:
    response = await gateway.chat(model="cheeky\nname")

    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"
    assert (await gateway.done()).model == "unknown"
    labels = [value.labels for value in gateway.telemetry.snapshot().values]
    assert all(entry["model"] == "unknown" for entry in labels)


async def pieces(num_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(num_bytes // 65536):
        yield b"x" * 65536


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_and_the_connection_lives(
    gateways: GatewayFactory, chunked: object
) -> None:
    gateway = await gateways(max_body_bytes=1_000_000)
    content = pieces(8_000_000) if chunked else b"x" * 8_000_000

    response = await gateway.http.post("/v1/chat/completions", content=content)

    assert response.status_code == 413
    assert "limit of 1000000 bytes" in response.json()["error"]["message"]
    after = await gateway.http.get("/health")
    assert client_port(after) == client_port(response)


def client_port(response: httpx.Response) -> int:
    address: tuple[str, int] = response.extensions["network_stream"].get_extra_info("client_addr")
    return address[1]


async def test_a_body_at_the_limit_passes(gateways: GatewayFactory, neurons: NeuronFactory) -> None:
    gateway = await gateways(max_body_bytes=500)
    await neurons()
    body = b'{"model":"org/tiny-1.0","messages":[{"role":"user","content":"x"}]}'

    fits = await gateway.http.post("/v1/chat/completions", content=body.ljust(500))
    over = await gateway.http.post("/v1/chat/completions", content=body.ljust(501))

    assert (fits.status_code, over.status_code) == (200, 413)


@pytest.mark.parametrize("name", [TINY, TINY.replace("/", "%2F"), "little"])
async def test_a_model_is_found_by_its_id_however_written(gateway: Running, name: str) -> None:
    response = await gateway.http.get(f"/v1/models/{name}")

    assert response.status_code == 200
    assert response.json()["id"] == name.replace("%2F", "/")
    assert response.json()["object"] == "model"


async def test_the_list_has_models_and_aliases_and_where_they_are(
    gateway: Running, neurons: NeuronFactory
) -> None:
    before = (await gateway.http.get("/v1/models")).json()
    await neurons()
    await gateway.chat()

    after = (await gateway.http.get("/v1/models")).json()

    assert after["object"] == "list"
    assert [entry["id"] for entry in after["data"]] == [TINY, "little"]
    assert before["data"][0]["locations"] == []
    assert not before["data"][0]["loaded"]
    for entry in after["data"]:
        assert entry["loaded"]
        assert entry["locations"] == [{"node": "a", "status": "loaded"}]
        assert entry["owned_by"] == "cortex"
        assert entry["max_model_len"] == 2048


@pytest.mark.parametrize("path", ["/", "/health", "/readyz"])
async def test_probes_answer_get_and_head(gateway: Running, path: str) -> None:
    assert (await gateway.http.get(path)).status_code == 200
    assert (await gateway.http.head(path)).status_code == 200


async def test_it_is_not_ready_before_it_knows_the_catalogue(
    unready_gateways: GatewayFactory, bus_factory: BusFactory
) -> None:
    gateway = await unready_gateways()

    before = await gateway.http.get("/readyz")
    refused = await gateway.http.post("/v1/chat/completions", json=HELLO)
    await FakeScheduler(await bus_factory("scheduler")).start()
    await gateway.ready()

    assert before.status_code == 503
    assert before.headers["retry-after"] == "2"
    assert is_openai_error(before.json())
    assert refused.status_code == 503


async def test_the_api_description_has_the_real_schemas(gateway: Running) -> None:
    described = (await gateway.http.get("/openapi.json")).json()

    chat = described["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatBody"}
    fields = described["components"]["schemas"]["ChatBody"]["properties"]
    assert {"model", "messages", "temperature", "stop", "stream_options"} <= set(fields)
    assert "/v1/models/{id}" in described["paths"]
    assert (await gateway.http.get("/docs")).status_code == 200
