from __future__ import annotations

import pytest
import zmq
import zmq.auth
from localize_core.errors import ConfigError
from localize_core.wire.curve import check_curve, read_public_key, read_public_keys, read_secret_key


@pytest.fixture
def keys(tmp_path):
    """The files of a pair, as `zmq.auth` writes them: public, secret."""
    public, secret = zmq.auth.create_certificates(tmp_path, "north")
    (tmp_path / "north.key_secret").chmod(0o600)
    return public, secret


def test_keys_are_those_of_zmq_auth(keys):
    public, secret = zmq.auth.load_certificate(keys[1])
    assert (read_public_key(keys[0]), read_secret_key(keys[1])) == (public, secret)
    assert zmq.curve_public(read_secret_key(keys[1])) == public


def test_a_folder_of_clients(keys, tmp_path):
    other, _ = zmq.auth.create_certificates(tmp_path, "south")
    (tmp_path / "notes.txt").write_text("none of ours")
    assert read_public_keys(tmp_path) == {read_public_key(keys[0]): "north", read_public_key(other): "south"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach(keys, tmp_path, mode):
    (tmp_path / "north.key_secret").chmod(mode)
    with pytest.raises(ConfigError, match=r"chmod 600 .*north\.key_secret"):
        read_secret_key(keys[1])


def test_the_wrong_one_of_the_two(keys):
    with pytest.raises(ConfigError, match="holds a secret key"):
        read_public_key(keys[1])
    with pytest.raises(ConfigError, match="holds no secret key"):
        read_secret_key(keys[0])


@pytest.mark.parametrize(
    "content", ["", "public-key", 'public-key = "short"', "\xff", *(f'public-key = "{40 * c}"' for c in "~#")]
)
def test_what_is_no_key(tmp_path, content):
    path = tmp_path / "north.key"
    path.write_text(content)
    for read in (lambda: read_public_key(path), lambda: read_public_keys(tmp_path)):
        with pytest.raises(ConfigError, match=r"north\.key"):
            read()


def test_a_damaged_secret(tmp_path):
    path = tmp_path / "north.key_secret"
    path.write_text('public-key = "?"\nsecret-key = "?"\n')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="40 characters"):
        read_secret_key(path)


def test_what_is_not_there(tmp_path):
    for read in (read_public_key, read_secret_key):
        with pytest.raises(ConfigError, match="missing"):
            read(tmp_path / "missing")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=r"NAME\.key"):
            read_public_keys(folder)


def test_libzmq_without_it(monkeypatch):
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with pytest.raises(ConfigError, match="without it"):
        check_curve()
