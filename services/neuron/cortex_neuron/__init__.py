"""The neuron: one per host, owns its devices, the models on them, and their engines."""
