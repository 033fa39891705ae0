"""Start the scheduler."""

from cortex_kit.service import serve
from cortex_scheduler.service import scheduler

if __name__ == "__main__":
    serve("scheduler", scheduler)
