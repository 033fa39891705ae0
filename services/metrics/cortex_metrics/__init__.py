"""The metrics service: hears what every service counts, adds it up, shows it to Prometheus and people."""
