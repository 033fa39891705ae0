"""Start the evictor."""

from cortex_kit.service import serve

from cortex_evictor.service import evictor

if __name__ == "__main__":
    serve("evictor", evictor)
