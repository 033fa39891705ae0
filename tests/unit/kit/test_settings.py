"""The settings: defaults, file, environment, and what is refused by name."""

from pathlib import Path

import pytest

from cortex_kit.settings import Settings, SettingsError, decode, load


def test_an_empty_file_gives_the_defaults() -> None:
    assert decode("", {}) == Settings()


def test_the_file_changes_what_it_names_and_nothing_else() -> None:
    settings = decode("[gateway]\nmax_waiting = 3", {})

    assert settings.gateway.max_waiting == 3
    assert settings.gateway.listen == Settings().gateway.listen


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("[gatway]\nlisten = '127.0.0.1:1'", "gatway"),
        ("[gateway]\nlisten_on = '127.0.0.1:1'", "listen_on"),
        ("[gateway]\nmax_waiting = 'many'", "gateway.max_waiting"),
        ("[eviction]\nstrategy = 'random'", "eviction.strategy"),
        ("[neuron]\nmax_batch = 1.5", "neuron.max_batch"),
        ("[gateway\n", "line 1"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(text: str, culprit: str) -> None:
    with pytest.raises(SettingsError, match=culprit):
        decode(text, {})


def test_the_environment_overrides_the_file() -> None:
    environ = {"CORTEX_NATS__URL": "nats://bus:4222", "CORTEX_GATEWAY__MAX_WAITING": "7"}

    settings = decode("[nats]\nurl = 'nats://elsewhere:4222'", environ)

    assert settings.nats.url == "nats://bus:4222"
    assert settings.gateway.max_waiting == 7


def test_an_override_that_looks_like_no_value_is_text() -> None:
    assert decode("", {"CORTEX_NEURON__NAME": "node-1.5"}).neuron.name == "node-1.5"


@pytest.mark.parametrize("name", ["CORTEX_GATEWAY__LISTEN_ON", "CORTEX_GATWAY__LISTEN"])
def test_an_override_of_an_unknown_key_is_refused_by_name(name: str) -> None:
    section, key = name.removeprefix("CORTEX_").lower().split("__")

    with pytest.raises(SettingsError, match=f"{section}|{key}"):
        decode("", {name: "x"})


def test_a_mistyped_override_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"gateway\.max_waiting"):
        decode("", {"CORTEX_GATEWAY__MAX_WAITING": "many"})


def test_other_variables_are_none_of_our_business() -> None:
    assert decode("", {"CORTEX_CONFIG": "x", "CORTEX_PARENT_PID": "1", "PATH": "/bin"}) == Settings()


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "absent.toml"

    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load(missing, {})
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load(None, {"CORTEX_CONFIG": str(missing)})


def test_without_a_named_file_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load(None, {}) == Settings()


def test_without_a_named_file_the_one_here_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cortex.toml").write_text("[log]\nlevel = 'debug'")

    assert load(None, {}).log.level == "debug"


def test_an_error_names_the_file_it_is_in(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[gateway]\nspeed = 1")

    with pytest.raises(SettingsError, match=r"fleet\.toml.*speed"):
        load(file, {})
