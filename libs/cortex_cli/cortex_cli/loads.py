"""Bars in the terminal for models that are being loaded."""

import asyncio

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cortex_kit.bus import Bus
from cortex_proto import subjects
from cortex_proto.fleet import Loading, Replica


class Bars:
    """One bar for each model on its way to a node."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[tuple[str, str], TaskID] = {}

    async def show(self, replica: Replica, _subject: str) -> None:
        """Move the bar of one replica; take it away when the load is over."""
        key = (replica.model, replica.node)
        if not isinstance(replica.state, Loading):
            if key in self._bars:
                self._progress.remove_task(self._bars.pop(key))
            return
        if key not in self._bars:
            self._bars[key] = self._progress.add_task("", total=1.0)
        text = f"{replica.model} on {replica.node}: {replica.state.stage}"
        self._progress.update(self._bars[key], description=text, completed=replica.state.progress)


async def show_loads(bus: Bus, console: Console) -> None:
    """Show bars on `console` until cancelled."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        await bus.hear(subjects.ANY_LOAD, Bars(progress).show)
        await asyncio.Event().wait()
