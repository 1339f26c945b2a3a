"""The service, its limits and quotas, and their documentation."""

import re
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densescore import DensescoreError, DenseScorer
from densescore.demo.decode_child import FORMATS
from densescore.demo.limits import BusyError, Clients, Limits, Quota, TooLargeError, TooManyError, TooSlowError
from densescore.demo.service import Answer, Service
from densescore.geometry import Pyramid
from densescore.results.scores import DenseScores, best_patches
from tests.demo.conftest import Gate
from tests.demo.raw import flat, png

Serving = Callable[..., Service]


def whole(answer: Answer) -> Answer:
    return answer


def test_the_scores_are_the_scorers(serving: Serving, toy: DenseScorer) -> None:
    answer = serving().submit(png(), "toy", whole).result(30)
    assert answer.pixels.shape == (30, 40, 3)
    assert torch.equal(answer.scores.patch_scores, toy.score(png()).patch_scores)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (bytes(200_001), TooLargeError, "has 200,001 bytes; at most 200,000"),
        (flat(1000, 2000), TooLargeError, "2000×1000 = 2,000,000 pixels; at most 1,000,000"),
        # Refused before the network runs: few pixels, many patches.
        (flat(20, 20_000), TooLargeError, "20000×20 pixels has more than 1,000 patches"),
        (flat(1, 900_000), TooLargeError, "900000×1 pixels has more than 1,000 patches"),
        (flat(900_000, 1), TooLargeError, "1×900000 pixels has more than 1,000 patches"),
        (b"", DensescoreError, "image of 0 bytes: "),
        (b"not a picture", DensescoreError, "image of 13 bytes: not an image"),
        (png()[:200], DensescoreError, "image of 200 bytes: "),
        (__file__.encode(), DensescoreError, "not an image"),  # a path is not read
    ],
    ids=["bytes", "pixels", "long", "row", "column", "empty", "text", "cut off", "path"],
)
def test_bad_images_are_refused(serving: Serving, data: bytes, error: type[Exception], message: str) -> None:
    service = serving(Limits(upload=200_000, pixels=1_000_000, cells=1000))
    with pytest.raises(error, match=message):
        service.submit(data, "toy", whole).result(30)
    with pytest.raises(DensescoreError, match="no model 'other': there are toy"):
        service.submit(data, "other", whole)


def test_one_image_is_scored_and_few_wait(serving: Serving, gate: Gate) -> None:
    service = serving(Limits(seconds=30, waiting=1), gate)
    first = service.submit(png(), "toy", whole)
    assert gate.begun.wait(30)
    waiting = service.submit(png(), "toy", whole)
    with pytest.raises(BusyError, match="1 images are waiting already"):
        service.submit(png(), "toy", whole)
    assert service.queued == 2
    assert waiting.cancel()  # its place is free again
    second = service.submit(png(), "toy", whole)
    gate.go.set()
    assert first.result(30).scores.labels == second.result(30).scores.labels == ("a", "b", "c")
    assert service.submit(png(), "toy", whole).result(30).scores.labels == ("a", "b", "c")


def test_late_work_is_not_begun(serving: Serving, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serving(Limits(seconds=0.2), gate)
    calls: list[Any] = []
    monkeypatch.setattr(gate.scorer, "score", calls.append)
    futures = [service.submit(png(), "toy", whole) for _ in range(2)]  # late before the network, and before decoding
    assert not wait(futures, 0.5).done
    gate.go.set()
    for future in futures:
        with pytest.raises(TooSlowError, match=r"not scored within 0\.2 seconds"):
            future.result(30)
    assert calls == []


def test_the_best_patches_share_the_image_score() -> None:
    pyramid = Pyramid.of(224, 288, scales=(1,))
    scores = DenseScores(torch.tensor([[0.2], [0.4], [0.1]]), ("cat",), pyramid, k=2)
    best = best_patches(scores, "cat", 2)
    assert [patch.box[0] for patch in best] == [32]  # the others overlap it
    np.testing.assert_allclose(best[0].share, 16 / 21, rtol=1e-6)


def test_a_quota_is_shared_and_given_back() -> None:
    quota = Quota("bytes", each=10, total=15)
    with quota.lease("a", 1) as take_a, quota.lease("b") as take_b:
        take_a(9)
        with pytest.raises(TooManyError, match="bytes: one client may have 10"):
            take_a(1)
        take_b(5)
        with pytest.raises(BusyError, match="bytes: all 15 are in use"):
            take_b(1)
        with pytest.raises(BusyError), quota.lease("c", 1):
            pytest.fail("granted")
        assert quota.used == 15
    assert quota.used == 0
    quota.take("b", 10)


def test_clients_are_told_apart_by_address() -> None:
    clients = Clients(Limits(), ["10.0.0.0/8", "::1"])
    for host, key, proxy in (
        ("10.9.8.7", "10.9.8.7", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::1", "::/64", True),
        ("11.0.0.1", "11.0.0.1", False),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64", False),
        ("testclient", "testclient", False),
    ):
        assert (clients.key(host), clients.is_proxy(host)) == (key, proxy)
    with pytest.raises(DensescoreError, match=r"a proxy must be an IP address or a network, got 'proxy\.local'"):
        Clients(Limits(), ["proxy.local"])


def test_the_docs_have_every_limit_and_the_formats() -> None:
    pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
    from densescore.demo import server

    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \|", text, re.MULTILINE)
    assert {name: float(number.replace(",", "")) for name, number in rows} == asdict(Limits())
    formats = re.search(r"It takes ([\w, ]+), and refuses", text)
    assert formats is not None
    assert {name.upper() for name in re.split(", | and ", formats[1])} == set(FORMATS)
    assert f"{server._GRACE_SECONDS} more seconds" in text
    assert f"header may have {server._HEADER_BYTES // 1024} kB" in text
