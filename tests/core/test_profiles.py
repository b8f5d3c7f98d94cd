"""Profiles: which service a command or a program means, and whom a key is shown to."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskyard.client import Client, profiles
from taskyard.client.profiles import Place, choose, path_of, read
from taskyard.errors import ConfigurationError

FILE = """
default = "local"

[local]
url = "http://127.0.0.1:8001"

[prod]
url = "https://tasks.example.com"
key = "ty_prod"

[staging]
url = "https://staging.example.com"
key = "${env:STAGING_KEY}"
"""


def written(folder: Path, text: str = FILE, mode: int = 0o600) -> dict[str, str]:
    """An environment whose profiles are these."""
    environment = {"XDG_CONFIG_HOME": str(folder)}
    path = path_of(environment)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return environment


DEFAULT = Place("http://127.0.0.1:8000", "")
PROD = Place("https://tasks.example.com", "ty_prod")
LOCAL = Place("http://127.0.0.1:8001", "")


@pytest.mark.parametrize(
    ("said", "environment", "place"),
    [
        ((None, None, None), {}, LOCAL),
        ((None, None, "prod"), {}, PROD),
        ((None, None, None), {"TASKYARD_PROFILE": "prod"}, PROD),
        ((None, None, "prod"), {"TASKYARD_PROFILE": "local", "TASKYARD_URL": "http://e", "TASKYARD_KEY": "ty_e"}, PROD),
        ((None, None, None), {"TASKYARD_URL": "http://e", "TASKYARD_KEY": "ty_e"}, Place("http://e", "ty_e")),
        ((None, "ty_k", "prod"), {}, Place(PROD.url, "ty_k")),
        (("http://f", None, None), {"TASKYARD_URL": "http://e", "TASKYARD_KEY": "ty_e"}, Place("http://f", "ty_e")),
        ((None, None, "local"), {"TASKYARD_KEY": "ty_e"}, Place(LOCAL.url, "ty_e")),
        ((None, None, "staging"), {"STAGING_KEY": "ty_s"}, Place("https://staging.example.com", "ty_s")),
    ],
)
def test_options_beat_the_named_profile_which_beats_the_environment_which_beats_the_default(
    tmp_path: Path, said: tuple[str | None, str | None, str | None], environment: dict[str, str], place: Place
) -> None:
    environment = {**written(tmp_path), **environment}
    assert choose(*said, read(environment), environment) == place


def test_a_profiles_key_goes_to_no_other_address(tmp_path: Path) -> None:
    environment = written(tmp_path)
    assert choose("http://elsewhere", None, "prod", read(environment), environment) == Place("http://elsewhere", "")
    assert choose("https://tasks.example.com/", None, "prod", read(environment), environment).key == "ty_prod"
    environment |= {"TASKYARD_URL": "http://elsewhere", "TASKYARD_PROFILE": "prod"}
    assert choose(None, None, None, read(environment), environment) == Place("http://elsewhere", "")


def test_without_a_file_there_is_no_profile(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert choose(None, None, None, read(environment), environment) == DEFAULT
    with pytest.raises(ConfigurationError, match="has no profile 'prod'"):
        choose(None, None, "prod", read(environment), environment)


def test_the_file_is_where_the_xdg_specification_says() -> None:
    assert path_of({"HOME": "/home/a"}) == Path("/home/a/.config/taskyard/profiles.toml")
    assert path_of({"HOME": "/home/a", "XDG_CONFIG_HOME": "relative"}) == Path("/home/a/.config/taskyard/profiles.toml")
    assert path_of({"HOME": "/home/a", "XDG_CONFIG_HOME": "/etc/xdg"}) == Path("/etc/xdg/taskyard/profiles.toml")


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        (FILE, "prd", r"has no profile 'prd'\. Did you mean 'prod'\?"),
        ("[a]\nurl = 'ftp://x'", "a", r"\[a\]: ftp://x: expected an address such as"),
        ("[a]\nulr = 'http://x'", "a", r"\[a\]: url: field required; ulr: no such setting\. Did you mean 'url'\?"),
        ("[a]\nurl = 'http://x'\nkey = '${env:NOWHERE}'", "a", r"\[a\]: the environment variable NOWHERE is not set"),
        ("[a]\nurl = 'http://x'\nkey = 'ty geheim'", "a", r"\[a\]: The access key has a character"),
        ("default = 'b'\n[a]\nurl = 'http://x'", "a", r"default: there is no profile 'b'"),
        ("url = 'http://x'", "a", r"profiles\.toml, line 1: url: expected a table"),
        ("[a", "a", r"not valid TOML"),
    ],
)
def test_what_is_wrong_with_the_file_is_told_with_its_place(tmp_path: Path, text: str, name: str, sentence: str) -> None:
    environment = written(tmp_path, text)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        choose(None, None, name, read(environment), environment)
    assert "geheim" not in str(caught.value)


def test_keys_that_others_can_read_are_noticed(tmp_path: Path) -> None:
    assert read(written(tmp_path, mode=0o644)).is_exposed()
    assert not read(written(tmp_path, mode=0o600)).is_exposed()
    assert not read(written(tmp_path, "[a]\nurl = 'http://x'\nkey = '${file:a.key}'", 0o644)).is_exposed()
    assert not profiles.Profiles(tmp_path / "none").is_exposed()


def test_a_program_may_name_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TASKYARD_URL", "TASKYARD_KEY", "TASKYARD_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", written(tmp_path)["XDG_CONFIG_HOME"])
    with Client(profile="prod") as client:
        assert client.url == "https://tasks.example.com"
    with Client() as client:
        assert client.url == "http://127.0.0.1:8000", "a program that names none reads no file"
