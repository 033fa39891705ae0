"""What clients speak: each dialect reads bodies into `Generate` and writes deltas as its own events."""
