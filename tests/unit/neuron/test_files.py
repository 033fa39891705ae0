"""From a catalogue entry to a path; everything else is refused in words that help."""

from pathlib import Path

import pytest

from cortex_neuron.files import Repo, Weights, locate
from cortex_proto.catalogue import Model
from cortex_proto.errors import LoadFailedError
from cortex_proto.ids import ModelId


def model(source: str | None = None, quant: str | None = None, name: str = "some/model") -> Model:
    return Model(ModelId(name), source, quant)


@pytest.fixture
def ggufs(tmp_path: Path) -> Path:
    """A directory with three quantisations and nothing else."""
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory as Hugging Face has it."""
    (tmp_path / "config.json").touch()
    return tmp_path


def test_a_directory_is_taken_whole(checkpoint: Path) -> None:
    assert locate(model(str(checkpoint)), Path("/")) == Weights(checkpoint)


def test_a_relative_path_is_relative_to_the_settings(checkpoint: Path) -> None:
    assert locate(model(checkpoint.name), checkpoint.parent) == Weights(checkpoint)


def test_without_a_source_the_id_is_the_path(checkpoint: Path) -> None:
    assert locate(model(None, name=str(checkpoint)), Path("/")) == Weights(checkpoint)


@pytest.mark.parametrize(
    ("name", "source", "repo"),
    [
        ("some/model", "hf:org/name", Repo("org/name")),
        ("some/model", "hf:org/na-me.2@v1.0", Repo("org/na-me.2", revision="v1.0")),
        ("org/name", None, Repo("org/name")),
    ],
)
def test_a_hub_is_asked_by_source_or_by_an_id_that_is_no_path(
    name: str, source: str | None, repo: Repo
) -> None:
    assert locate(model(source, name=name), Path("/")) == repo


@pytest.mark.parametrize(
    ("quant", "wanted"),
    [("Q4_K_M", Repo("org/name", quant="Q4_K_M")), ("bf16", Repo("org/name", dtype="bfloat16"))],
)
def test_quant_names_a_file_of_a_repository_or_a_dtype(quant: str, wanted: Repo) -> None:
    assert locate(model("hf:org/name", quant), Path("/")) == wanted


def test_an_id_that_is_neither_a_path_nor_a_repository_is_refused() -> None:
    with pytest.raises(
        LoadFailedError, match="names no `source`, and is neither a path nor an id of the hub"
    ):
        locate(model(None, name="model"), Path("/nowhere"))


@pytest.mark.parametrize(("quant", "file"), [("Q4_K_M", "m-Q4_K_M.gguf"), ("q8_0", "m-Q8_0.gguf")])
def test_quant_chooses_the_file_with_it_in_its_name(ggufs: Path, quant: str, file: str) -> None:
    assert locate(model(str(ggufs), quant), Path("/")) == Weights(ggufs / file)


@pytest.mark.parametrize(
    ("quant", "dtype"), [("bf16", "bfloat16"), ("F32", "float32"), ("float16", "float16")]
)
def test_quant_may_name_a_dtype(checkpoint: Path, quant: str, dtype: str) -> None:
    assert locate(model(str(checkpoint), quant), Path("/")) == Weights(checkpoint, dtype)


def test_a_file_of_an_installed_package_is_found_without_importing_it() -> None:
    weights = locate(model("package:pytest/__init__.py"), Path("/"))

    assert isinstance(weights, Weights)
    assert weights.path.name == "__init__.py"
    assert weights.path.exists()


@pytest.mark.parametrize(
    ("source", "quant", "said"),
    [
        ("nowhere", None, "does not exist on this node"),
        ("hub:org/name", None, "use a path, hf:<org>/<name> or package:"),
        ("hf:name", None, "use a path, hf:<org>/<name> or package:"),
        ("hf:a/b/c", None, "use a path, hf:<org>/<name> or package:"),
        ("package:no_such_package/x.gguf", None, "'no_such_package' of source .* is not installed"),
        ("package:/x", None, "is not installed"),
        (".", None, "several files .* m-F16.gguf, m-Q4_K_M.gguf, m-Q8_0.gguf"),
        (".", "Q5", "no .gguf file in .* has 'Q5' in its name; there are: m-F16.gguf"),
        (".", "Q", "several files for quant 'Q'"),
        ("m-Q8_0.gguf", "Q4", "has 'Q4' in its name"),
    ],
)
def test_a_refusal_says_what_to_do(ggufs: Path, source: str | None, quant: str | None, said: str) -> None:
    with pytest.raises(LoadFailedError, match=said):
        locate(model(source, quant), ggufs)


def test_a_quant_of_a_directory_without_such_a_file_is_refused(checkpoint: Path) -> None:
    with pytest.raises(LoadFailedError, match=r"has no \.gguf file, as quant 'Q4' needs"):
        locate(model(str(checkpoint), "Q4"), Path("/"))


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailedError, match=r"neither config\.json nor a \.gguf file"):
        locate(model(str(tmp_path)), Path("/"))
