"""What every cortex process needs to live: the bus, settings, logs, telemetry, start and drain."""
