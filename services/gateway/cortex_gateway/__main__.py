"""`python -m cortex_gateway`: the HTTP endpoint."""

from cortex_gateway.service import run
from cortex_kit.service import serve

if __name__ == "__main__":
    serve("gateway", run)
