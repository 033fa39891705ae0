"""Language models in plain torch, computed over a paged cache of keys and values."""
