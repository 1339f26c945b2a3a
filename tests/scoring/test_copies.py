"""Equal options of any type, copies, pickles and forked processes."""

import copy
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import densescore
from densescore import DensescoreError, DenseScorer
from densescore.models.registry import MODELS, ModelEntry
from densescore.network.surgery import to_dense
from densescore.scoring import classify
from tests.conftest import Toy


@pytest.mark.parametrize(
    "options",
    [
        {"mean": [0.4, 0.5, 0.6]}, {"mean": np.array([0.4, 0.5, 0.6])}, {"mean": torch.tensor([0.4, 0.5, 0.6])},
        {"scales": np.array([1.0, 1.5])}, {"patch_sizes": np.array([30, 50])}, {"labels": np.array(["x", "y", "z"])},
        {"k": np.float32(3)}, {"weights": Path("weights.safetensors")},
    ],
    ids=lambda options: re.sub(r" at 0x\w+", "", str(options)),
)  # fmt: skip
def test_equal_options_share_a_scorer(
    options: dict[str, Any], toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "weights" in options:
        save_file(dict(Toy().state_dict()), "weights.safetensors")
    scorer = classify.shared_scorer("toy", options)
    assert classify.shared_scorer("toy", dict(options)) is scorer
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in options.items()}
    assert DenseScorer("toy", **plain).fingerprint() == scorer.fingerprint()
    other = {**options, "k": 7}
    assert classify.shared_scorer("toy", other) is not scorer


def score_in_a_worker(pickled: bytes, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pickle.loads(pickled).score(image).patch_scores.numpy()


def test_a_scorer_is_pickled_for_a_spawned_worker(cat: NDArray[np.uint8]) -> None:
    scorer = DenseScorer("lite0", scales=np.array([1, 1.3]), k=3).with_scales((1, 1.2))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        scores = pool.apply(score_in_a_worker, (pickle.dumps(scorer), cat))
    np.testing.assert_allclose(scores, scorer.score(cat).patch_scores, rtol=1e-4, atol=1e-6)
    assert scores.std() > 1e-3


def test_copies_share_the_network(toy: None, cat: NDArray[np.uint8]) -> None:
    scorer = DenseScorer(Toy(), patch_size=20, scales=(1,))
    for made in (copy.copy(scorer), copy.deepcopy({"scorer": scorer})["scorer"]):
        assert made is not scorer
        assert torch.equal(made.score(cat).patch_scores, scorer.score(cat).patch_scores)
    finer = scorer.with_scales(patch_sizes=(60, 150))
    assert finer.network is scorer.network
    assert (scorer.scales, scorer.patch_sizes, finer.patch_sizes) == ((1,), None, (60, 150))
    assert finer.fingerprint("features") == scorer.fingerprint("features")
    assert finer.fingerprint() != scorer.fingerprint()
    with pytest.raises(DensescoreError, match="takes scales or patch_sizes"):
        scorer.with_scales()
    with pytest.raises(DensescoreError, match="scales must be"):
        scorer.with_scales((0,))


def test_modules_and_changed_models_cannot_be_pickled(toy: None) -> None:
    cut = DenseScorer("toy").with_network(to_dense(Toy(), 20), "another")
    for scorer in (DenseScorer(Toy(), patch_size=20), DenseScorer("toy", weights=None), cut):
        with pytest.raises(DensescoreError, match="make this one in the process that uses it"):
            pickle.dumps(scorer)
    pickled = pickle.dumps(DenseScorer("toy"))
    MODELS["toy"] = ModelEntry("other", lambda weights: Toy(5), lambda: {}, "none", "tests", patch_size=20)
    with pytest.raises(DensescoreError, match="cannot be made again: here it has another .*classifier"):
        pickle.loads(pickled).score(np.zeros((60, 60, 3), np.uint8))


FORKED = """
import os, sys, numpy as np, densescore, torch
from tests.conftest import Toy
torch.set_num_threads(2)
scorer = densescore.DenseScorer(Toy(), patch_size=20)
scorer.score(np.zeros((60, 60, 3), np.uint8))
if os.fork() == 0:
    try:
        scorer.score(np.zeros((60, 60, 3), np.uint8))
    except densescore.DensescoreError as error:
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_refuses_to_score_and_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=300, check=False)
    assert done.returncode == 7


def test_every_entry_refuses_a_forked_process(
    toy_scorer: DenseScorer, cat: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    make = lambda _: DenseScorer(Toy(), patch_size=20)  # noqa: E731
    for use in (toy_scorer.score, toy_scorer.features, densescore.classify, make):
        with pytest.raises(DensescoreError, match=r"forked .* start workers by 'spawn'"):
            use(cat)
