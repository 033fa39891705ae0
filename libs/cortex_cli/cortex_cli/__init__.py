"""The command `cortex`: runs the services, asks them, measures them."""
