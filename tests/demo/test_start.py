"""The start of the page: what it imports, listens at and loads; and what clients learn of the server."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.demo.decoder import Decoder
from densescore.demo.limits import ModelError
from densescore.demo.service import Service
from tests.cli.runner import CliRunner
from tests.demo.raw import png


@pytest.mark.parametrize("place", ["", "absolute", "PYTHONPATH"])
def test_the_decoder_imports_nothing_from_the_working_directory(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traps = ["numpy", "PIL", "json", "cv2", "struct", "densescore", "sitecustomize", "usercustomize"]
    for name in traps:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(tmp_path)
    if place == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path)]))
    else:
        monkeypatch.syspath_prepend("" if not place else str(tmp_path))
    decoder = Decoder()
    try:
        assert decoder.decode(png(), 10_000, 30).shape == (30, 40, 3)
    finally:
        decoder.close()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("host", "message"), [("", "got an empty text"), (" ", "is empty; expected an address")])
def test_an_empty_host_is_refused(host: str, message: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--host", host])
    assert result.exit_code == 2
    assert f"error: --host: {message}" in result.stderr


def test_every_model_is_loaded_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: DenseScorer) -> None:
    pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
    (tmp_path / "broken.safetensors").write_bytes(b"no head")
    served: list[object] = []
    monkeypatch.setattr("densescore.demo.server.make_server", lambda *args: served.append(args))
    result = CliRunner().invoke(app, ["demo", "--model", "lite0", "--model", str(tmp_path / "broken.safetensors")])
    assert result.exit_code != 0
    assert "broken.safetensors" in result.stderr
    assert not served


def test_a_client_is_not_told_where_a_model_lies(
    serving: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> DenseScorer:
        raise DensescoreError(f"{tmp_path}/birds.safetensors: no such weights file")

    service = serving(model=load)
    with pytest.raises(ModelError, match="^model 'toy' cannot be loaded; see the server's log$"):
        service.submit(png(), "toy", lambda answer: answer).result(60)
    assert str(tmp_path) in caplog.text
