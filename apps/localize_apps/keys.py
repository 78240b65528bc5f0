"""`gr-localize keys`: make a pair of keys, for who publishes over ZeroMQ or for who listens."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click
import zmq.auth
from localize_core.errors import ConfigError
from localize_core.wire.curve import check_curve

NAME = re.compile(r"\w[\w.@-]*")


def make_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """Write NAME.key and NAME.key_secret, which nobody else may read. Returns both.

    Raises ConfigError for a name that is no file's, for keys that are there already, and for a folder that cannot be
    written.
    """
    check_curve()
    if not NAME.fullmatch(name):
        raise ConfigError(f"NAME={name!r}: wanted letters, digits and . _ @ -, a letter or digit first")
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists():
            raise ConfigError(f"{path} is there already; whoever has its public key would no longer get anything")
    try:
        with tempfile.TemporaryDirectory(dir=folder) as private:  # what is written in there, nobody else sees
            made = zmq.auth.create_certificates(private, name)
            for source, target, mode in zip(map(Path, made), (public, secret), (0o644, 0o600), strict=True):
                source.chmod(mode)
                source.rename(target)
    except OSError as error:
        raise ConfigError(f"{folder}: keys cannot be written there: {error.strerror}") from error
    return public, secret


@click.command("keys")
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="this one",
    help="Where to write them; it has to be there.",
)
def command(name: str, folder: Path) -> None:
    """Make the keys NAME.key, to be given away, and NAME.key_secret, for encrypted fixes over ZeroMQ."""
    public, secret = make_keys(name, folder)
    click.echo(
        f"{public}  the public key: give it to the other side\n"
        f"{secret}  the secret key: it stays here, and nobody else may read it\n"
        "\n"
        "For a station that publishes:  [publish]\n"
        f'  zmq = {{ endpoint = "tcp://0.0.0.0:5555", curve_secret_key_file = "{secret}", curve_clients = "FOLDER" }}\n'
        "  with a file NAME.key in FOLDER for each client that may listen.\n"
        "For a client:  its own secret key, and the station's public one."
    )
