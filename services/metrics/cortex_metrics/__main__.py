"""`python -m cortex_metrics`: start the metrics service."""

from cortex_kit.service import serve
from cortex_metrics.service import run

if __name__ == "__main__":
    serve("metrics", run)
