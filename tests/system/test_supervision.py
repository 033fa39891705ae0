"""`cortex up` keeps everything running, and leaves nothing behind."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from builders.running import CHILDREN, Cortex, CortexFactory

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    """One running system that the tests here may hurt, as long as it recovers."""
    one = Cortex(tmp_path_factory.mktemp("battered"))
    one.start()
    try:
        one.wait_ready()
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_comes_back_and_the_system_is_ready_again(battered: Cortex, name: str) -> None:
    first = battered.wait(lambda: battered.child(name), what=f"{name} runs")
    seen = len(battered.lines)

    first.kill()

    battered.wait_event("died", after=seen, program=name, how="SIGKILL")
    second = battered.wait(lambda: battered.child(name), what=f"{name} runs again")
    assert second.pid != first.pid
    if name != "nats":
        battered.wait_event("ready", after=seen, service=name)
    battered.wait_ready()


def test_after_ctrl_c_it_exits_well_in_order_and_nothing_is_left(cortex_factory: CortexFactory) -> None:
    one = cortex_factory()
    one.start()
    one.wait_ready()
    one.ask("Say hello.")
    everything = one.children()

    code = one.stop()

    assert code == 0
    assert_gone(everything)
    stopped = [r["program"] for r in one.records() if r.get("event") == "stopped" and "program" in r]
    assert stopped == ["gateway", "neuron", "scheduler", "evictor", "metrics", "nats"]
    assert not [r for r in one.records() if r.get("event") == "killed"]


def test_ctrl_c_while_it_still_starts_leaves_nothing(cortex_factory: CortexFactory) -> None:
    one = cortex_factory()
    one.start()
    one.wait_event("started", program="neuron")
    everything = one.children()

    assert one.stop() == 0
    assert_gone(everything)


def test_when_the_supervisor_is_killed_nothing_outlives_it(cortex_factory: CortexFactory) -> None:
    one = cortex_factory()
    one.start()
    one.wait_ready()
    one.ask("Say hello.")
    everything = one.children()
    assert len(everything) > len(CHILDREN), "the model's rank is a process too"

    os.kill(one.pid, signal.SIGKILL)

    one.wait_exit()
    assert_gone(everything)


def test_a_second_one_on_the_same_ports_is_refused_and_the_first_unharmed(battered: Cortex) -> None:
    before = pids(battered)

    second = battered.run("up")

    assert second.returncode == 2
    assert f"127.0.0.1:{battered.ports.gateway}" in second.stderr
    assert "CORTEX_GATEWAY__LISTEN" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert pids(battered) == before
    assert battered.answers("/readyz")


def test_a_second_one_on_other_ports_but_the_same_store_is_refused(
    battered: Cortex, cortex_factory: CortexFactory
) -> None:
    other = cortex_factory()

    second = other.run("up", CORTEX_NATS__STORE_DIR=str(battered.store))

    assert second.returncode == 2
    assert f"another `cortex up` uses {battered.store}" in second.stderr
    assert battered.answers("/readyz")


def test_bad_settings_of_a_service_stop_everything_with_its_message(cortex_factory: CortexFactory) -> None:
    one = cortex_factory(models="[[models]]\nid = 'a'\n[[models]]\nid = 'a'\n")

    ended = one.run("up")

    assert ended.returncode == 2
    assert "model 'a' is listed twice" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "cortex: scheduler cannot run; its last lines say why"


def pids(one: Cortex) -> dict[str, int]:
    """Name the process of every child; wait for one that is being restarted."""

    def found() -> dict[str, int] | None:
        children = {name: child.pid for name in CHILDREN if (child := one.child(name))}
        return children if len(children) == len(CHILDREN) else None

    seen: dict[str, int] = one.wait(found, what="all children run")
    return seen


def assert_gone(processes: list[psutil.Process]) -> None:
    assert processes
    _, alive = psutil.wait_procs(processes, timeout=20.0)
    assert alive == []
