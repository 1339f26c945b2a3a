"""Images too large for memory, read by windows and scored tile by tile (extra ``huge``)."""

from densescore.jobs.huge.scoring import score_huge
from densescore.jobs.huge.source import HugeImage, open_huge

__all__ = ["HugeImage", "open_huge", "score_huge"]
