"""What stands between a command and its first answer: packages that take longer to load than a photograph to score."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

SLOW = (
    "torchvision", "timm", "triton", "torch._dynamo", "sympy", "scipy", "skimage", "sklearn", "pandas", "pyarrow",
    "openvino", "av", "supervision",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "slow"), [("classify", (*SLOW, "matplotlib")), ("heatmap", SLOW)]
)  # fmt: skip
def test_a_first_answer_loads_no_slow_package(
    command: str, slow: tuple[str, ...], cat: NDArray[np.uint8], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "photo.jpg"), cat[:, :, ::-1])
    code = (
        "import sys\n"
        "from densescore.__main__ import main\n"
        f"sys.argv = ['densescore', '{command}', 'photo.jpg', '--scales', '1', '--verbose']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('status', status, *({{*sys.modules}} & {{*{slow!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Egyptian cat" in done.stdout
    assert "by torch" in done.stderr  # one photograph's runtime, by name
    assert done.stdout.splitlines()[-1] == "status 0"
