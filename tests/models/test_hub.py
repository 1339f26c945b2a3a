"""Heads and networks of the Hugging Face Hub, by a local stand-in of its HTTP interface."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

from densescore import DenseScorer
from densescore.models.head import AdaptationHead, HeadFile, save_head

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of repositories: ``user/name/file`` → bytes."""

    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        """``/user/name/resolve/main/file``."""
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        data = self.files.get(f"{repo}/{rest.partition('/')[2]}")
        if data is None:
            is_known = any(name.startswith(f"{repo}/") for name in self.files)
            self.answer(404, X_Error_Code="EntryNotFound" if is_known else "RepoNotFound", X_Repo_Commit=COMMIT)
        else:
            self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, b"{}")
        elif self.path == "/api/validate-yaml":
            self.answer(200, b'{"errors": [], "warnings": []}')
        elif self.path == "/api/repos/create":
            sent = json.loads(body)
            name = f"{sent['organization']}/{sent['name']}" if sent.get("organization") else sent["name"]
            self.answer(200, json.dumps({"url": f"http://{self.headers['Host']}/{name}"}).encode())
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            place = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
            self.answer(200, json.dumps({"commitUrl": place, "commitOid": COMMIT}).encode())
        else:
            self.answer(404, b"{}")


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def python(code: str, hub: ThreadingHTTPServer, home: Path, token: str = "secret", **more: str) -> str:
    """Output of a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_TOKEN": token,
                "HF_HUB_DISABLE_TELEMETRY": "1", **more}  # fmt: skip
    code = (
        f"import densescore\ntry:\n    {code}\nexcept densescore.DensescoreError as error:\n    print('error:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **settings}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_head_goes_up_with_a_card_and_comes_back(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    training = {"images": 70, "labels": {"jay": 30, "owl": 40}, "held_out_ap": {"jay": 0.5, "owl": 0.75}}
    torch.manual_seed(0)
    head = HeadFile(AdaptationHead(1280, 2, 8), ("jay", "owl"), "lite0", (0.5,) * 3, (0.5,) * 3, 224, training=training)
    save_head(file, head)
    push = f"print(densescore.load_head({str(file)!r}).push_to_hub('me/birds'))"
    assert python(push, hub, tmp_path / "up").strip() == f"http://127.0.0.1:{hub.server_port}/me/birds"
    card = Hub.files["me/birds/README.md"].decode()
    assert "| owl | 40 | 0.750 |" in card
    assert "Mean AP in cross-validation: 0.625" in card
    assert "densescore.classify('photo.jpg', 'hf-hub:me/birds')" in card

    load = "s = densescore.DenseScorer('hf-hub:me/birds'); print(s.name, s.labels, s.classifier_digest)"
    mine = DenseScorer(file)
    expected = f"hf-hub:me/birds ('jay', 'owl') {mine.classifier_digest}\n"
    assert python(load, hub, tmp_path / "down") == expected
    hub.shutdown()
    hub.server_close()
    assert python(load, hub, tmp_path / "down", HF_HUB_OFFLINE="1") == expected  # from the cache
    assert "error: hf-hub:me/birds: " in python(load, hub, tmp_path / "new", HF_HUB_OFFLINE="1")


def test_a_network_in_timms_format(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    config = {"architecture": "test_resnet", "num_classes": 3, "label_names": ["a", "b", "c"],
              "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5],
                                 "num_classes": 3, "first_conv": "conv1", "classifier": "fc"}}  # fmt: skip
    torch.save(network.state_dict(), tmp_path / "weights")
    Hub.files |= {"they/net/config.json": json.dumps(config).encode(),
                  "they/net/pytorch_model.bin": (tmp_path / "weights").read_bytes()}  # fmt: skip
    load = "s = densescore.DenseScorer('hf-hub:they/net'); print(s.labels, s.network.patch, s.mean, s.weights_digest)"
    digest = DenseScorer(network, patch_size=160).weights_digest
    assert python(load, hub, tmp_path / "home") == f"('a', 'b', 'c') 160 (0.1, 0.2, 0.3) {digest}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:me/none", "cannot be loaded from the hub: "),
        ("hf-hub:birds//x", "cannot be loaded from the hub: "),
        ("hf-hub:me/empty", "neither a head of densescore nor "),
    ],
)
def test_what_is_not_there_is_an_error(name: str, message: str, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    Hub.files["me/empty/README.md"] = b""
    said = python(f"densescore.DenseScorer({name!r})", hub, tmp_path)
    assert said.startswith(f"error: {name}: {message}")
    assert said.count("\n") == 1
