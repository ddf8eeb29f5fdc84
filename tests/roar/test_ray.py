"""Two machines of a Ray cluster, one of which is killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("ray")

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from tests.helpers.tiny_squares import Data, Slow
from fg_lightning.roar import ROARExperiment
from fg_lightning.roar.engines import RayEngine

settings = dict(methods=["random", "gradient"], fractions=[0.5], num_seeds=2, max_epochs=1)
quiet = Console(quiet=True)
os.environ["SECONDS_EACH"] = "0"
local = ROARExperiment(sys.argv[1] + "/local", Data, Slow, console=quiet, **settings).run()
os.remove(os.environ["BEGUN"])
os.environ["SECONDS_EACH"] = "4"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
engine = RayEngine(cluster.address)
assert engine.num_parallel == 2

def kill():
    while not os.path.exists(os.environ["BEGUN"]) or len(open(os.environ["BEGUN"]).readlines()) < 4:
        time.sleep(0.1)
    cluster.remove_node(second, allow_graceful=False)
    print("killed", flush=True)

threading.Thread(target=kill, daemon=True).start()
shared = ROARExperiment(sys.argv[1] + "/ray", Data, Slow, console=quiet, engine=engine, **settings).run()
print("alive", sum(node["Alive"] for node in ray.nodes()), "failed", len(shared.failures))
print("begun", len(open(os.environ["BEGUN"]).readlines()))
engine.close()
cluster.shutdown()
"""


def test_a_killed_machine_costs_only_what_ran_on_it(tmp_path: Path) -> None:
    here = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": here, "BEGUN": str(tmp_path / "begun"), "RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "killed" in ran.stdout
    assert "alive 1 failed 0" in ran.stdout
    assert (tmp_path / "ray" / "results.csv").read_bytes() == (tmp_path / "local" / "results.csv").read_bytes()
