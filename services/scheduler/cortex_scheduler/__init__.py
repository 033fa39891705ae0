"""The scheduler: decides which model runs on which devices of which node."""
