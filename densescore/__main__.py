"""``python -m densescore``, which torchrun can start: ``torchrun --nproc-per-node 8 -m densescore pretrain …``."""

from densescore.cli.main import app

app(prog_name="densescore")
