"""The HTTP call: what curl would get."""

import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")

from densescore import DenseScorer
from densescore.demo.decoder import Decoder
from densescore.demo.limits import Limits
from densescore.demo.service import Service
from tests.demo.test_service import png

Serve = Callable[..., str]


def call(url: str, data: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_scores_and_maps(serve: Serve, service: Service, toy: DenseScorer) -> None:
    url = serve(service)
    scores = toy.score(png())
    status, body, _ = call(f"{url}/score?top=2&patches=3", png())
    assert status == 200
    found = json.loads(body)
    assert found["labels"] == [best.label for best in scores.top(2)]
    np.testing.assert_allclose(found["scores"], [best.score for best in scores.top(2)], rtol=1e-6)
    np.testing.assert_allclose(found["confidences"], [best.confidence for best in scores.top(2)], rtol=1e-6)
    assert found["confidence"] == found["confidences"][0]
    assert found["best_patch"]["score"] == found["best_patches"][0]["score"]
    assert (found["model"], found["height"], found["width"], len(found["best_patches"])) == ("Toy", 30, 40, 3)
    status, body, _ = call(f"{url}/map?label=b", png())
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), scores.response_map("b")[0].numpy())
    assert json.loads(call(f"{url}/models")[1]) == ["toy"]
    described = json.loads(call(f"{url}/openapi.json")[1])["paths"]["/score"]["post"]
    assert {parameter["name"] for parameter in described["parameters"]} == {"model", "classes", "top", "patches"}
    assert "application/octet-stream" in described["requestBody"]["content"]


def test_only_some_classes(serve: Serve, service: Service, toy: DenseScorer) -> None:
    url = serve(service)
    chosen = toy.score(png()).select(["c", "b"])
    found = json.loads(call(f"{url}/score?classes=%20c,b,", png())[1])
    assert found["labels"] == [best.label for best in chosen.top()]
    assert {region["label"] for region in found["regions"]} == {chosen.top(1)[0].label}
    shown = json.loads(call(f"{url}/view?classes=b", png())[1])["classes"]
    assert [entry["label"] for entry in shown] == ["b"]
    assert shown[0]["confidence"] == pytest.approx(chosen.confidence()[1].item(), rel=1e-6)
    with np.load(io.BytesIO(call(f"{url}/maps?classes=b,a", png())[1])) as maps:
        assert {*maps["labels"].tolist()} == {"a", "b"}


@pytest.mark.parametrize(
    ("path", "data", "status", "message"),
    [
        ("/score", b"not a picture", 422, "image of 13 bytes: not an image"),
        ("/score", bytes(300_000), 413, "300,000 bytes; at most 200,000"),
        ("/score?model=../../etc/passwd", png(), 422, "no model '../../etc/passwd'"),
        ("/map?label=d", png(), 422, "no class 'd'"),
        ("/score?classes=a,d", png(), 422, "no class 'd'"),
        ("/view?classes=" + "a" * 1001, png(), 422, "at most 1000 characters"),
    ],
)
def test_errors_are_json(serve: Serve, service: Service, path: str, data: bytes, status: int, message: str) -> None:
    code, body, _ = call(serve(service) + path, data)
    assert code == status
    assert message in json.loads(body)["error"]


def test_a_body_of_unsaid_length_is_cut_off(serve: Serve, service: Service) -> None:
    chunks = iter([bytes(100_000)] * 5)  # an iterator goes chunked, without Content-Length
    code, body, _ = call(serve(service) + "/score", chunks)
    assert code == 413
    assert "more than 200,000 bytes" in json.loads(body)["error"]


def test_a_crowd_is_turned_away_and_a_late_answer_is_not_waited_for(
    serve: Serve, toy: DenseScorer, decoder: Decoder
) -> None:
    go = threading.Event()

    def slow() -> DenseScorer:
        assert go.wait(60)
        return toy

    service = Service({"slow": slow}, Limits(seconds=3, waiting=1, images=5), decoder)
    url = serve(service) + "/score"
    with ThreadPoolExecutor(5) as crowd:
        answers = list(crowd.map(lambda seed: call(url, png(seed=seed)), range(5)))
    assert sorted(status for status, _, _ in answers) == [503, 503, 503, 504, 504]
    assert {headers["Retry-After"] for status, _, headers in answers if status == 503} == {"5"}
    go.set()
    service.close()
