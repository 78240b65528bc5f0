"""What a station does, in numbers that Prometheus scrapes. Needs the extra `metrics`."""
