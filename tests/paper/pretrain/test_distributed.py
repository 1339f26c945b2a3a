import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from densescore.errors import DensescoreError
from densescore.models.weights import read_weights
from tests.paper.pretrain.source_training import RECIPE, load_tree, small_network, train, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from densescore.models.weights import save_weights
from densescore.paper.pretrain.process import process_group
from tests.paper.pretrain.source_training import RECIPE, load_tree, small_network, train

torch.set_num_threads(1)
tree, out, checkpoint, dropout, pause = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(float, sys.argv[4:])
images, network = load_tree(tree), small_network(dropout=dropout)
def wait(event):
    if (event.epoch, event.step) == (1, 4):
        time.sleep(pause)

with process_group("cpu") as process:
    train(network, images, RECIPE, process=process, checkpoint=checkpoint, checkpoint_steps=4, callback=wait,
        callback_steps=1)
    if process.rank == 0:
        save_weights(out, network.state_dict(), images.classes)
"""


def run_script(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    script = Path(str(arguments[1])).with_suffix(".py")
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def trained(tree: Path, dropout: float) -> dict[str, torch.Tensor]:
    """Weights of the script's training, uninterrupted and in one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = small_network(dropout=dropout)
    train(network, load_tree(tree), RECIPE)
    torch.set_num_threads(threads)
    return network.state_dict()


def test_a_killed_training_resumes_to_the_same_weights(tree: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "source.safetensors", tmp_path / "checkpoint"
    process = run_script(tree, out, checkpoint, 0.5, 600)  # it waits in the middle of the second epoch
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoint.is_file() and torch.load(checkpoint, weights_only=True)["counters"]["total"] == 12:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    state = torch.load(checkpoint, weights_only=True)
    assert state["counters"] == {"epoch": 1, "step": 3, "total": 12}
    assert not out.exists()
    finish(run_script(tree, out, checkpoint, 0.5, 0))
    expected = trained(tree, dropout=0.5)
    got = read_weights(out)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    started = small_network().state_dict()
    assert not any(torch.equal(got[name], started[name]) for name in expected)
    resume = partial(train, images=load_tree(tree), recipe=RECIPE, checkpoint=checkpoint)
    for network, seed in ((small_network(), 1), (small_network(classes=4), 0)):
        with pytest.raises(DensescoreError, match="belongs to a training with other data or settings"):
            resume(network, seed=seed)
    checkpoint.write_bytes(b"half")
    with pytest.raises(DensescoreError, match="cannot be read as a checkpoint"):
        resume(small_network())


def test_two_processes_take_the_steps_of_one(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "source.safetensors"
    finish(run_script(tree, out, tmp_path / "checkpoint", 0.0, 0, processes=2))
    expected = trained(tree, dropout=0.0)
    for name, tensor in read_weights(out).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
