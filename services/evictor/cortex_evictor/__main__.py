"""Start the evictor."""

from cortex_evictor.service import evictor
from cortex_kit.service import serve

if __name__ == "__main__":
    serve("evictor", evictor)
