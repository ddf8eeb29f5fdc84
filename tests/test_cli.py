"""Where the command line finds modules, and how it reads words."""

import errno
import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from fg_lightning.cli import main as cli
from fg_lightning.cli.option_errors import shorten

SHADOWS = ("torch", "lightning", "rich", "json", "jsonargparse", "numpy", "argparse")


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "fg_lightning"], ["-c", "from fg_lightning.cli.main import main; main()"]])
def test_nothing_in_the_current_folder_stands_for_a_library(tmp_path, start):
    if start[0] == "-c":  # what the installed command does, whose own folder is first
        start = [str(tmp_path / "command.py")]
        Path(start[0]).write_text("from fg_lightning.cli.main import main; main()")
    here = tmp_path / "here"
    here.mkdir()
    for name in SHADOWS:
        (here / f"{name}.py").write_text("raise SystemExit('code of the current folder ran')")
    done = subprocess.run([sys.executable, *start, "report", "none"], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none does not exist" in done.stderr
    assert "code of the current folder ran" not in done.stderr


def test_the_current_folder_is_last_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/somewhere", "."])
    cli.put_current_folder_last()
    assert sys.path == ["/somewhere", str(tmp_path)]


def test_a_folder_that_pythonpath_names_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/somewhere"])
    cli.put_current_folder_last()
    assert sys.path == [str(tmp_path), "/somewhere"]


def test_a_current_folder_that_was_removed_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit, match="the current folder was removed"):
        cli.main(["report", "none"])


@pytest.mark.parametrize("number", ["-1", "-1e-3", "-.5", "-2.1,-2.0"])
def test_numbers_below_0_are_values(number):
    assert cli._join_values(["explain", "a.png", "--fill", number, "-o", "x"]) == [
        "explain",
        "a.png",
        f"--fill={number}",
        "--output",
        "x",
    ]


def test_options_have_short_forms():
    assert cli._join_values(["roar", "--seeds", "2", "-o", "x"]) == ["roar", "--num_seeds", "2", "--output", "x"]
    assert cli._join_values(["roar", "--seeds=2", "a=b=c"]) == ["roar", "--num_seeds=2", "a=b=c"]


def test_a_name_that_is_too_long_is_a_sentence():
    with pytest.raises(SystemExit, match=r"^fg-lightning: File name too long \(.*x+\.\.\.\): give a shorter name$"):
        cli.main(["report", "x" * 300])


@pytest.mark.parametrize(("code", "is_a_sentence"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.ENOTCONN, False)])
def test_a_fault_of_the_disk_is_a_sentence(monkeypatch, code, is_a_sentence):
    def failing(given):
        raise OSError(code, os.strerror(code), "run/events")

    monkeypatch.setattr(cli, "_run", failing)
    with pytest.raises(SystemExit if is_a_sentence else OSError, match=os.strerror(code)) as stop:
        cli.main(["fit"])
    if is_a_sentence:
        assert "(run/events): " in str(stop.value)


@pytest.mark.parametrize(("code", "told"), [(None, "fg-lightning: stopped\n"), (1, "fg-lightning: stopped\n"), (130, "")])
def test_ctrl_c_is_told_once(code, told, monkeypatch, capsys):
    def stopped(given):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if code is not None:
                sys.exit(code)  # 1: Lightning's Trainer; 130: a command that has told it
            raise

    monkeypatch.setattr(cli, "_run", stopped)
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        (["demo", "--shortcut"], ["demo", "--shortcut=true"]),
        (["demo", "--shortcut", "--seed", "3"], ["demo", "--shortcut=true", "--seed", "3"]),
        (["demo", "--shortcut", "false"], ["demo", "--shortcut", "false"]),
        (["demo", "--shortcut=false"], ["demo", "--shortcut=false"]),
        (["planted", "--shortcut", "corner"], ["planted", "--shortcut", "corner"]),
        (["roar", "--retry_failed", "--output", "x"], ["roar", "--retry_failed=true", "--output", "x"]),
    ],
)
def test_an_option_that_is_true_or_false_needs_no_value(given, filled):
    assert cli._fill_flags(given) == filled


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fg-lightning {version('fg-lightning')}\n"


def test_help_of_a_command_that_takes_classes_lists_none_of_torch(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["watch-checkpoints", "--help"])
    printed = capsys.readouterr().out
    assert "class path of your LightningModule" in " ".join(printed.split())
    assert "torch.nn" not in printed
    assert len(printed.splitlines()) < 150


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_describes_the_command_completely(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    docstring = inspect.getdoc(cli.find_function(command)) or ""
    described = docstring.partition("\n\nArgs:")[0].split("\n\n")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    printed = capsys.readouterr().out
    usage, *paragraphs = printed.partition("\n\n" + ("positional" if "\n\npositional" in printed else "options"))[0].split("\n\n")
    assert usage.startswith(f"usage: fg-lightning {command} [options]")
    assert [" ".join(part.split()) for part in paragraphs][: len(described)] == [" ".join(part.split()) for part in described]
    assert max(map(len, paragraphs[0].splitlines())) <= 80


@pytest.mark.parametrize("command", ["roar", "planted", "fit"])
def test_help_lists_no_internal_class(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    listed = re.findall(r"knownsubclasses:([^()]*)", "".join(capsys.readouterr().out.split()))
    ours = [path for paths in listed for path in paths.split(",") if path.startswith("fg_lightning.")]
    assert bool(listed) == ("fg_lightning.training.ImageClassifier" in ours) == (command == "fit")
    assert all(find_spec(path.rpartition(".")[0]).submodule_search_locations for path in ours)  # public: found in a package


def test_a_missing_word_is_named_as_in_the_help(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report"])
    printed = capsys.readouterr().err
    assert printed.startswith("usage: fg-lightning report [options] run_dirs ...\n")
    assert "required: run_dirs\n" in printed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["watch", "x", "--port", "abc"], "--port abc: expected a whole number"),
        (["roar", "--data", "nowhere.Data"], "--data nowhere.Data: No module named 'nowhere'"),
        (["roar", "--data", "NowhereData"], "--data NowhereData: expected an import path such as my_package.Name"),
        (["roar", "--model", "os.path"], "--model os.path: it is neither a class nor a function"),
        (["roar", "--data.foo", "1"], "--data: Option 'foo' is not accepted without a class; give the class"),
        (["roar", "--fractions", "0.5"], "--fractions 0.5: expected a list such as [a,b]"),
        (["roar", "--mode", "x"], "--mode x: expected roar or kar or road"),
        (["roar", "--target", "x"], "--target x: expected predicted or label or random, or a whole number"),
        (["demo", "--seed", "-1"], "--seed -1: expected a number >=0"),
        (["completion", "fish"], "shell fish: expected bash or zsh or tcsh"),
        (["report", "--foo", "x"], "unrecognized arguments: --foo"),
        (["fit", "--model", "nowhere.Net"], "--model nowhere.Net: No module named 'nowhere'"),
        (["fit", "--model.lr", "abc"], "--model: --lr abc: expected a number"),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_a_sentence(given, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(given)
    assert capsys.readouterr().err.endswith(f"\nerror: {told}\n")


def test_an_error_of_another_form_is_shown_as_it_is():
    assert shorten("argument --title: expected one argument") == "argument --title: expected one argument"
    assert shorten("Parser key \"a\":\n  Expected a <class 'NoneType'>").startswith("Parser key")
