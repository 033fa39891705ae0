"""`python -m cortex_neuron`: be the neuron of this host."""

from cortex_kit.service import serve
from cortex_neuron.service import run

if __name__ == "__main__":
    serve("neuron", run)
