"""Endpoints at which a station takes commands."""

from __future__ import annotations

from localize_core.errors import ConfigError

LOCAL = ("ipc://", "tcp://127.0.0.1:", "tcp://[::1]:", "tcp://localhost:")
"""There is no authentication: whoever reaches the endpoint may change the model."""


def check_endpoint(endpoint: str) -> str:
    """Raises ConfigError for an endpoint that other machines could reach."""
    if not endpoint.startswith(LOCAL):
        raise ConfigError(f"endpoint {endpoint!r}: wanted ipc://PATH or tcp://127.0.0.1:PORT, on this machine only")
    return endpoint
