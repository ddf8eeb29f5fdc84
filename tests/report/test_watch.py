"""fg-lightning watch: what it serves of runs that go on, and to whom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from fg_lightning.cli.main import main
from fg_lightning.report.live_runs import LiveRun, LiveRuns
from tests.helpers.written_runs import experiment, run

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from fg_lightning.report.live_server import DEFAULT_PORT, is_loopback, make_app, serve  # noqa: E402


@contextmanager
def served(top, host="127.0.0.1"):
    """The address of the pages of the runs below a folder."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(LiveRuns(top), host), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def get(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.url
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), address


def state_of(page):
    """What a page has, as its script sends it to ask for more."""
    text = page.decode()
    live = json.loads(text.split('id="live-data">')[1].split("</script>")[0])
    return {"signature": live["signature"], "seen": live["seen"]}


def cut(source, target, count):
    """The first snapshots of a run, as a training that goes on leaves them."""
    if not target.exists():
        shutil.copytree(source, target)
    (target / "film_strip.png").unlink(missing_ok=True)
    for name in ("history.csv", "images.csv", "layers.csv"):
        heading, *lines = (source / name).read_text().splitlines(keepends=True)
        (target / name).write_text("".join([heading, *(line for line in lines if int(line.split(",")[0]) < count)]))


def test_new_snapshots_alone_are_sent(tmp_path):
    run(tmp_path / "whole", num_snapshots=5)
    folder = tmp_path / "logs" / "fullgrad"
    cut(tmp_path / "whole", folder, 2)
    live = LiveRun(folder)
    state = state_of(live.page().encode())
    assert set(live.changes(2, **state)) == {"seen", "age", "has_ended"}
    cut(tmp_path / "whole", folder, 4)
    news = live.changes(2, **state)
    assert [snapshot["title"] for snapshot in news["entries"]["snapshots"]] == ["epoch 2", "epoch 3"]
    assert {name: len(items) for name, items in news["entries"].items()} == {"snapshots": 2, "images": 2, "layers": 2}
    assert [bool(sprite) for sprite in news["sprites"]["fullgrad"]] == [True, True]
    assert {figure["name"] for figure in news["figures"]} >= {"completeness", "drift", "layers"}
    drift = next(figure for figure in news["figures"] if figure["name"] == "drift")
    assert len(drift["content"]["data"][0]["x"]) == 4
    again = live.changes(4, signature=news["signature"], seen=news["seen"])
    assert set(again) == {"seen", "age", "has_ended"}
    assert again["has_ended"] is False
    (folder / "film_strip.png").touch()
    ended = live.changes(4, signature=news["signature"], seen=news["seen"])
    assert ended["has_ended"] is True
    assert ended["entries"]["snapshots"] == []
    os.utime(folder / "film_strip.png", (0, 0))  # of an earlier part of the run, which was resumed
    assert live.changes(4, signature=news["signature"], seen=news["seen"])["has_ended"] is False


def test_numbers_that_come_later_do_not_reload_the_page(tmp_path):
    maps = run(tmp_path / "whole")
    folder = tmp_path / "fullgrad"
    cut(tmp_path / "whole", folder, 1)
    (folder / "gradcam").mkdir()
    rows = ["snapshot,epoch,step,num_steps,drift,concentration\n", "0,0,0,,,0.5\n", "1,1,10,,0.1,0.5\n"]
    (folder / "gradcam" / "history.csv").write_text("".join(rows[:2]))
    np.save(folder / "gradcam" / "maps.npy", np.stack([values.numpy() for values in maps]))
    live = LiveRun(folder)
    state = state_of(live.page().encode())
    (folder / "gradcam" / "history.csv").write_text("".join(rows))
    cut(tmp_path / "whole", folder, 2)
    news = live.changes(1, **state)
    assert news["entries"]["snapshots"][0]["numbers"]["gradcam/drift"] == 0.1
    assert [len(of_method) for of_method in news["sprites"].values()] == [1, 1]


def test_a_run_of_100_snapshots_sends_little_for_one_more(tmp_path):
    run(tmp_path / "whole", num_snapshots=101, n=8, size=28, layers=20)
    cut(tmp_path / "whole", tmp_path / "fullgrad", 100)
    live = LiveRun(tmp_path / "fullgrad")
    page = live.page().encode()
    cut(tmp_path / "whole", tmp_path / "fullgrad", 101)
    news = json.dumps(live.changes(100, **state_of(page))).encode()
    assert len(news) < len(page) / 30


def test_a_page_that_no_longer_fits_is_loaded_again(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "other", seed=1, fingerprint="other")
    folder = tmp_path / "fullgrad"
    cut(tmp_path / "whole", folder, 3)
    live = LiveRun(folder)
    state = state_of(live.page().encode())
    cut(tmp_path / "whole", folder, 2)  # a run that was resumed from an earlier checkpoint
    assert live.changes(3, **state) == {"reload": True}
    state = state_of(live.page().encode())
    shutil.rmtree(folder)
    cut(tmp_path / "other", folder, 2)
    assert live.changes(2, **state) == {"reload": True}
    shutil.rmtree(folder)
    assert live.changes(2, **state) == {"reload": True}
    assert live.page() is None


@pytest.mark.parametrize("name", ["history.csv", "images.csv", "layers.csv", "maps.npy", "probe.json"])
def test_files_that_are_half_written_do_no_harm(tmp_path, name):
    run(tmp_path / "fullgrad")
    whole = (tmp_path / "fullgrad" / name).read_bytes()
    live = LiveRun(tmp_path / "fullgrad")
    for share in (0.0, 0.3, 0.7, 1.0):
        (tmp_path / "fullgrad" / name).write_bytes(whole[: int(share * len(whole))])
        os.utime(tmp_path / "fullgrad" / "history.csv", ns=(0, int(share * 1e9)))
        assert live.page() is not None or (name == "history.csv" and share < 0.7)
        live.summary()
    assert live.read()[1].notes == []


def test_a_single_run_is_shown_and_several_are_listed(tmp_path):
    run(tmp_path / "b" / "fullgrad")
    with served(tmp_path) as address:
        status, page, url = get(address)
        assert (status, url) == (200, f"{address}run?folder=b/fullgrad")
        assert b"Side by side" not in page
        assert b'id="live-data"' in page
        run(tmp_path / "a & b" / "fullgrad", seed=1)
        run(tmp_path / "begun" / "fullgrad", num_snapshots=0)
        time.sleep(3.1)  # the folders are searched every three seconds
        assert get(address)[2] == address
        rows = {row["folder"]: row for row in json.loads(get(f"{address}runs")[1])}
        assert {name: row["snapshots"] for name, row in rows.items()} == {"b/fullgrad": 4, "a & b/fullgrad": 4, "begun/fullgrad": 0}
        assert rows["b/fullgrad"]["last"] == "epoch 3, step 30"
        asked = urllib.parse.urlencode({"folder": "a & b/fullgrad"})
        assert get(f"{address}run?{asked}")[0] == 200
        assert get(f"{address}thumbnail?{asked}")[1][8:12] == b"WEBP"
        assert b'id="runs"' in get(f"{address}run?folder=begun/fullgrad")[1]  # it waits


def test_nothing_outside_the_folder_is_served(tmp_path):
    run(tmp_path / "secret")
    (tmp_path / "shown").mkdir()
    with served(tmp_path / "shown") as address:
        for folder in ("../secret", str(tmp_path / "secret"), "..", "%00"):
            asked = urllib.parse.urlencode({"folder": folder})
            assert [get(f"{address}{page}?{asked}")[0] for page in ("run", "changes", "thumbnail")] == [404] * 3
        assert get(f"{address}changes?folder=.&start=-1")[0] == 404
        assert get(f"{address}secret/history.csv")[0] == 404


def test_other_names_than_this_machines_are_refused(tmp_path):
    run(tmp_path)
    with served(tmp_path) as address:
        for host in ("localhost", "localhost:1234", "127.0.0.1:80", "[::1]:8642"):
            assert get(f"{address}runs", Host=host)[0] == 200
        for host in ("evil.example", "evil.example:8642", "127.0.0.1.evil.example", "[bad", ""):
            assert get(f"{address}runs", Host=host)[0] == 400
        assert b"open the page as http://localhost" in get(address, Host="evil.example")[1]
    with served(tmp_path, host="0.0.0.0") as address:
        assert get(f"{address}runs", Host="my.machine")[0] == 200
    assert [is_loopback(host) for host in ("127.0.0.5", "::1", "LOCALHOST", "0.0.0.0", "10.0.0.1")] == [True] * 3 + [False] * 2


def test_watching_leaves_the_folder_as_it_was(tmp_path):
    def content():
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(tmp_path.rglob("*"))}

    run(tmp_path / "fullgrad")
    before = content()
    with served(tmp_path) as address:
        for page in ("", "run?folder=fullgrad", "runs", "thumbnail?folder=fullgrad", "changes?folder=fullgrad&start=0"):
            get(address + page)
    assert content() == before


def test_what_cannot_be_watched_is_refused_with_the_reason(tmp_path):
    experiment(tmp_path / "roar")
    (tmp_path / "file").touch()

    def refused(*words):
        with pytest.raises(SystemExit) as exit_:
            main(["watch", *map(str, words)])
        return str(exit_.value)

    assert "is an experiment, but only monitored runs can be watched" in refused(tmp_path / "roar")
    assert "is a file, not a folder" in refused(tmp_path / "file")
    assert "nor the folder above it exists" in refused(tmp_path / "no" / "where")
    assert "--port must be between 0 (any free port) and 65535, not 70000" in refused(tmp_path, "--port", 70000)
    assert "is not an address of this machine" in refused(tmp_path, "--host", "no.such.host.invalid")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"port {number} is in use; choose another with --port" in refused(tmp_path, "--port", number)


def test_without_its_server_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "fg_lightning.report.live_server")
    with pytest.raises(SystemExit, match=r"watch needs uvicorn, which is not installed: pip install 'fg-lightning\[watch\]'"):
        main(["watch", str(tmp_path)])


def test_the_next_free_port_is_used_and_named(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        monkeypatch.setattr("fg_lightning.report.live_server.DEFAULT_PORT", number)
        monkeypatch.setattr("fg_lightning.report.live_server.uvicorn.Server.run", lambda self, sockets: None)
        told = []
        serve(tmp_path, None, "127.0.0.1", lambda address, notes: told.append((address, notes)))
    ((address, notes),) = told
    assert number < int(address.rstrip("/").rpartition(":")[2]) < number + 30
    assert notes[0].startswith(f"port {number} is in use, so ")
    assert "there is no run in" in notes[1]
    assert DEFAULT_PORT > 1023


@pytest.mark.slow
def test_it_ends_with_control_c(tmp_path):
    command = [sys.executable, "-m", "fg_lightning", "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[1].startswith("watching")
        address = lines[2].split()[1]
        assert get(f"{address}runs")[:2] == (200, b"[]")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.endswith("stopped\n")
    assert errors == ""
