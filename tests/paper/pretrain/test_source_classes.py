from pathlib import Path

import numpy as np
import pytest

from densescore.errors import DensescoreError
from densescore.paper.pretrain.source_classes import (
    DEFAULT_WORDNET,
    PAPER_SUBTREES,
    WordNet,
    choose,
    differences_from_paper,
    fall_2011,
    ilsvrc,
)

LINES = """\
  1 the license, indented
00000001 03 n 02 animal 0 hoofed_beast 1 002 ~ 00000002 n 0000 ~ 00000003 n 0000 | lives
00000002 05 n 01 horse 0 003 @ 00000001 n 0000 ~ 00000004 n 0000 ~i 00000005 n 0000 | neighs
00000003 05 n 01 cow 0 002 @ 00000001 n 0000 ~ 00000004 n 0000 | moos
00000004 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 000 | ten words, and two parents
00000005 18 n 01 Secretariat 0 001 @i 00000002 n 0000 | an instance
00000006 05 n 01 cow 1 000 | another meaning
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(LINES)
    return tmp_path


def test_a_subtree_holds_each_kind_once_without_instances(small: Path) -> None:
    nouns = WordNet(small)
    assert nouns.subtree("n00000001") == ["n00000001", "n00000002", "n00000003", "n00000004"]
    assert nouns.find("hoofed beast") == nouns.find("hoofed_beast") == "n00000001"
    assert nouns.find("n00000003") == "n00000003"
    assert nouns.name("n00000001") == "animal, hoofed beast"
    with pytest.raises(DensescoreError, match=r"2 meanings.*n00000003 \(cow\); n00000006 \(cow\)"):
        nouns.find("cow")
    with pytest.raises(DensescoreError, match="no noun 'dragon'"):
        nouns.find("dragon")


def test_other_files_than_wordnet_3_0_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=r"data.noun: no such file; install .*wordnet-base"):
        WordNet(tmp_path / "none")
    with pytest.raises(DensescoreError, match="not WordNet 3.0"):
        choose("subtree:horse", ["n00000002"], lambda: WordNet(small))
    (small / "data.noun").write_text("not a data file\n")
    with pytest.raises(DensescoreError, match="not in the format"):
        WordNet(small)


@pytest.mark.skipif(not (DEFAULT_WORDNET / "data.noun").is_file(), reason="WordNet 3.0 is not installed (wordnet-base)")
def test_pre_1512_is_the_papers() -> None:
    """WordNet 3.0's subtrees, in ImageNet's release of fall 2011, without ILSVRC's classes: the paper's counts."""
    choice = choose("pre-1512", fall_2011())
    assert dict(choice.added) == {"ilsvrc": 1000, **{f"subtree:{noun}": n for noun, n in PAPER_SUBTREES.items()}}
    assert sum(PAPER_SUBTREES.values()) == 512
    assert len(choice.wnids) == 1512
    assert differences_from_paper(choice) == []
    assert set(ilsvrc()) < set(choice.wnids)
    fewer = [wnid for wnid in fall_2011() if wnid != "n02834778"]  # bicycle itself
    assert differences_from_paper(choose("pre-1512", fewer)) == ["bicycle: 4 classes, 5 in the paper"]


def test_random_classes_follow_from_the_seed_and_the_available_ones() -> None:
    first = choose("random:1000:0", fall_2011()).wnids
    assert len(set(first)) == 1000
    assert set(first) <= set(fall_2011())
    assert choose("random:1000:0", fall_2011()[::-1]).wnids == first == choose("pre-1000r", fall_2011()).wnids
    other = set(choose("random:1000:1", fall_2011()).wnids)
    assert 10 < len(other & set(first)) < 100  # 1000 · 1000 / 21841 = 46 expected
    # A random thousand is not the thousand: as many of ILSVRC's as chance gives.
    assert np.isclose(len(set(first) & set(ilsvrc())), 46, atol=30)


def test_terms_add_up(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("n01440764 tench\n\nn99999999\n")
    choice = choose(f"n01440764, {path}", [])
    assert choice.wnids == ("n01440764", "n99999999")
    assert choice.added == (("n01440764", 1), (str(path), 1))
    assert choose("all", ["n2", "n1"]).wnids == ("n1", "n2")
    assert choose("ilsvrc", []).wnids == ilsvrc() == tuple(sorted(ilsvrc()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("furniture", "cannot resolve 'furniture'"),
        ("random:10", "expected random:COUNT:SEED, got 'random:10'"),
        ("random:3:0", "asks for 3 of 2 available"),
        ("n123", "cannot resolve 'n123'"),
        ("nouns.txt", "entry 2: expected a wnid"),
        ("empty.txt", "holds no wnid"),
    ],
)
def test_choices_that_cannot_be_resolved(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nouns.txt").write_text("n01440764\nhorse\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises(DensescoreError, match=message):
        choose(spec, ["n00000001", "n00000002"])
