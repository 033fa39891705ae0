"""Read-only HTTP for probes and people: how this node is, what it has, what is loaded. Port 13131."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cortex_neuron.hardware import Reading
from cortex_proto.catalogue import MIB
from cortex_proto.fleet import Device, Draining, Loading, LoadRefused, Node, Ready, Replica, Unloaded


@dataclass(frozen=True, slots=True)
class View:
    """What the pages show: the node as it is now, and what its devices say."""

    node: Callable[[], Node]
    readings: Callable[[], Awaitable[tuple[Reading, ...]]]
    uptime_s: Callable[[], float]
    driver_version: str | None


def app(view: View) -> Starlette:
    """Build the pages."""

    async def health(_: Request) -> Response:
        return JSONResponse(_health(view.node(), await view.readings(), view.uptime_s()))

    async def discovery(_: Request) -> Response:
        return JSONResponse(_discovery(view.node(), view.driver_version))

    async def models(_: Request) -> Response:
        return JSONResponse([_model(replica) for replica in view.node().replicas])

    routes = [Route("/health", health), Route("/discovery", discovery), Route("/models", models)]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse})


async def _refuse(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    body = {"error": {"code": status, "message": f"{request.method} {request.url.path}: {detail}"}}
    return JSONResponse(body, status)


def _health(node: Node, readings: tuple[Reading, ...], uptime_s: float) -> dict[str, Any]:
    return {
        "status": "ok",
        "node": node.id,
        "uptime_s": round(uptime_s, 1),
        "devices": [_state(d, next((r for r in readings if r.index == d.index), None)) for d in node.devices],
        "models": [_busyness(replica) for replica in node.replicas],
    }


def _state(device: Device, reading: Reading | None) -> dict[str, Any]:
    """Show the ledger's numbers, and the device's own beside them, which count whatever else runs here."""
    return {
        "index": device.index,
        "kind": device.kind,
        "ledger_total_mib": device.total_bytes // MIB,
        "ledger_free_mib": device.free_bytes // MIB,
        "memory_used_mib": reading.used_bytes // MIB if reading else None,
        "memory_free_mib": reading.free_bytes // MIB if reading else None,
        "utilization_pct": reading.utilization_pct if reading else None,
        "temperature_c": reading.temperature_c if reading else None,
    }


def _busyness(replica: Replica) -> dict[str, Any]:
    about = {"id": replica.model, "status": replica.status}
    match replica.state:
        case Ready(running=running, waiting=waiting, max_waiting=max_waiting, idle_s=idle_s):
            return {
                **about,
                "in_flight": running,
                "queue_depth": waiting,
                "max_queue_depth": max_waiting,
                "idle_s": round(idle_s, 1),
            }
        case Draining(running=running):
            return {**about, "in_flight": running}
        case Loading(stage=stage, progress=progress):
            return {**about, "stage": stage, "progress": round(progress, 3)}
        case LoadRefused(because=because):
            return {**about, "error": because}
        case Unloaded():
            return about


def _discovery(node: Node, driver_version: str | None) -> dict[str, Any]:
    return {
        "node": node.id,
        "hostname": node.hostname,
        "os": node.os,
        "kernel": node.kernel,
        "version": node.version,
        "incarnation": node.incarnation,
        "driver_version": driver_version,
        "devices": [
            {
                "index": device.index,
                "kind": device.kind,
                "name": device.name,
                "usable_bytes": device.total_bytes,
                "usable_mib": device.total_bytes // MIB,
                "compute_capability": device.compute_capability,
            }
            for device in node.devices
        ],
    }


def _model(replica: Replica) -> dict[str, Any]:
    context = replica.state.context if isinstance(replica.state, Ready) else None
    return {
        "id": replica.model,
        "status": replica.status,
        "detail": msgspec.to_builtins(replica.state),
        "devices": [share.device for share in replica.shares],
        "memory_bytes": replica.bytes,
        "memory_mib": replica.bytes // MIB,
        "limit": {"context": context},
    }
