"""fg-lightning completion, as bash itself completes with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fg_lightning.cli.main import COMMANDS, main

COMPLETE = """
source {script}
COMP_WORDS=({words} "{begun}")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
$(complete -p fg-lightning | sed 's/.*-F \\([^ ]*\\).*/\\1/') fg-lightning "{begun}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fg-lightning"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        main(["completion", "bash"])
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    text = COMPLETE.format(script=script, words=" ".join(["fg-lightning", *words[:-1]]), begun=words[-1])
    answer = subprocess.run([bash, "-c", text], cwd=script.parent, capture_output=True, text=True, check=True, timeout=30)
    return set(answer.stdout.split())


def test_every_command_is_offered(script: Path) -> None:
    assert completed(script, "") == set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["explain", "--me"], {"--methods", "--mean"}),
        (["fit", "--trainer.max_"], {"--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time"}),
        (["fit", "--model.num_"], {"--model.num_classes"}),
        (["fit", "--data.v"], {"--data.val_share"}),
        (["fit", "--data.k"], set()),
        (["test", "--ckpt"], {"--ckpt_path"}),
        (["roar", "--mode", ""], {"roar", "kar", "road"}),
        (["cite", "fullgrad", "smoothgrad"], {"smoothgrad", "smoothgrad_squared"}),
        (["report", "--ti"], {"--title"}),
        (["watch", "--po"], {"--port"}),
        (["report", ""], {"fg-lightning"}),  # the only file in the folder
    ],
)
def test_options_choices_and_files_are_offered(script: Path, words: list[str], offered: set[str]) -> None:
    assert completed(script, *words) == offered


def test_commands_are_described_without_their_example(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "zsh"])
    script = capsys.readouterr().out
    assert "or your own, on your images" in script
    assert "For example" not in script


def test_without_shtab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r"pip install 'fg-lightning\[completion\]'"):
        main(["completion", "zsh"])
