"""``python -m densescore``, which torchrun can start: ``torchrun --nproc-per-node 8 -m densescore pretrain …``."""

from densescore.cli import app

app(prog_name="densescore")
