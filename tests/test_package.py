"""What `import fg_lightning` promises."""

import doctest
import importlib
import subprocess
import sys

import pytest

from fg_lightning.cli.main import COMMANDS, _summary, find_function


@pytest.mark.parametrize("module", ["wandb", "ray", "matplotlib", "captum", "torch", "lightning"])
def test_import_loads_nothing_heavy(module):
    code = f"import sys, fg_lightning; print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_package_is_the_command():
    said = subprocess.run(
        [sys.executable, "-m", "fg_lightning", "explain", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("usage: fg-lightning")


@pytest.mark.parametrize("name", ["fullgrad.saliency", "callbacks.fullgrad_monitor"])
def test_examples_in_docstrings_do_what_they_show(name):
    results = doctest.testmod(importlib.import_module(f"fg_lightning.{name}"))
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_list_of_commands_says_what_their_docstrings_say(command):
    function = find_function(command)
    assert function.__doc__.strip().splitlines()[0] == _summary(command).__doc__


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["demo", "--help"], ["explain", "--help"]])
def test_help_waits_for_nothing_heavy(arguments):
    code = (
        "import sys; from fg_lightning.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "False"
