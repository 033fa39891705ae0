"""The HTTP endpoint: clients in, token streams out."""
