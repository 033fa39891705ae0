"""Logs: one JSON object a line, of our own events and of what libraries say."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from cortex_kit import logs
from cortex_kit.settings import Log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("neuron", Log())

    structlog.get_logger().info("model_loaded", model="m", seconds=1.5)

    entry = json.loads(capsys.readouterr().err)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "model_loaded", "level": "info", "service": "neuron", "model": "m", "seconds": 1.5,
    }  # fmt: skip


def test_what_a_library_logs_looks_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("neuron", Log())

    logging.getLogger("uvicorn.error").warning("port %d", 80)

    entry = json.loads(capsys.readouterr().err)
    assert (entry["event"], entry["level"], entry["service"]) == ("port 80", "warning", "neuron")


def test_an_exception_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("neuron", Log())

    try:
        int("no number")
    except ValueError:
        structlog.get_logger().exception("crashed")

    assert "Traceback" in json.loads(capsys.readouterr().err)["exception"]


def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("neuron", Log(level="warning"))

    structlog.get_logger().info("ours")
    logging.getLogger("theirs").info("theirs")

    assert capsys.readouterr().err == ""


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("neuron", Log(format="text"))

    structlog.get_logger().info("model_loaded", model="m")

    line = capsys.readouterr().err
    assert "model_loaded" in line
    assert "model=m" in line
