"""The command line as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from cortex_cli.main import main

COMMANDS = ("up", "serve", "status", "models", "chat", "tap", "bench", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])

    assert left.value.code == 0
    assert f"usage: cortex {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bench", "--concurrency", "1,0"], "0 is not at least 1"),
        (["bench", "--duration", "1", "--requests-per-level", "2"], "not allowed with"),
        (["serve", "gatway"], "invalid choice: 'gatway'"),
        ([], "COMMAND"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "cortex.toml"
    config.write_text("[gateway]\nlisten_on = 'x'\n")

    code = main(["models", "--config", str(config)])

    assert code == 2
    complaint = capsys.readouterr().err
    assert "listen_on" in complaint
    assert complaint.count("\n") == 1


def test_a_catalogue_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--models", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: no such file" in capsys.readouterr().err


def test_starting_a_service_imports_neither_the_client_nor_the_tables() -> None:
    code = (
        "import sys\n"
        "import cortex_cli.serve\n"
        "from cortex_cli.main import _parser\n"
        "_parser()\n"
        "assert not {'httpx', 'rich', 'torch', 'nats'} & set(sys.modules), sorted(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
