"""The documents are true where a machine can tell: metrics, settings, files and links that they name."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cortex_kit.settings import Settings
from cortex_proto.telemetry import METRICS

ROOT = Path(__file__).parents[3]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PARTS = sorted([*ROOT.glob("libs/cortex_*/"), *ROOT.glob("services/*/")])
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "libs/*/*.md", "services/*/*.md")
    for path in ROOT.glob(pattern)
)


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of the tables in `text` whose first cell matches `first`, cell by cell."""
    lines = [line for line in text.splitlines() if re.match(rf"\| {first} \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_metrics_are_those_that_cortex_exports() -> None:
    documented = [(row[0].strip("`"), *row[1:]) for row in cells(OPERATIONS, r"`cortex_\w+`")]

    assert documented == [
        (it.name, it.kind, ", ".join(f"`{label}`" for label in it.labels) or "-", it.help) for it in METRICS
    ]


def test_the_settings_are_those_that_there_are() -> None:
    documented = {
        row[0].strip("`[]"): re.findall(r"`(\w+)`", row[1]) for row in cells(OPERATIONS, r"`\[\w+\]`")
    }

    assert documented == {
        section.name: [key.name for key in msgspec.structs.fields(section.type)]
        for section in msgspec.structs.fields(Settings)
    }


def named_paths() -> Iterator[str]:
    """The files and folders in the table of the eight steps, from the repository's root.

    A name without a service before it lies in the package of the one named last.
    """
    services = {folder.name for folder in ROOT.glob("services/*/")}
    for row in cells(ARCHITECTURE, r"\d"):
        service = ""
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", row[2]):
            first, _, rest = name.partition("/")
            if first.startswith("cortex_"):
                yield f"libs/{first}/{name}"
                continue
            service, inside = (first, rest) if first in services else (service, name)
            yield f"services/{service}/cortex_{service}/{inside}"


def test_all_eight_steps_of_a_request_have_their_files() -> None:
    assert [row[0] for row in cells(ARCHITECTURE, r"\d")] == [str(step) for step in range(1, 9)]
    assert len(set(named_paths())) > 30


@pytest.mark.parametrize("path", sorted(set(named_paths())))
def test_a_file_that_the_architecture_names_exists(path: str) -> None:
    assert (ROOT / path).exists()


def links(document: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" not in target:
            yield target.partition("#")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    assert [target for target in links(document) if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("part", PARTS, ids=lambda path: path.name)
def test_every_part_says_what_it_is_for_on_one_screen(part: Path) -> None:
    text = (part / "README.md").read_text()

    assert text.startswith("# ")
    assert len(text.splitlines()) <= 60


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    reasons = (ROOT / "docs" / "adr" / "0004-dependencies.md").read_text()

    names = [re.split(r"[^\w-]", requirement)[0] for requirement in wanted]

    assert [name for name in names if f"`{name}`" not in reasons] == []
