"""Labels of models before they are built, classes by name, groups of ImageNet's classes, and files of labels."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from densescore import DensescoreError
from densescore.models import labels as groups
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.models.labels import find_classes, find_label, imagenet_labels, known_labels, read_label_file
from densescore.models.registry import MODELS, load_classifier
from densescore.models.weights import save_weights
from densescore.paper.pretrain.imagenet_groups import group_lines
from densescore.paper.pretrain.source_classes import DEFAULT_WORDNET, ilsvrc

TABLE = Path(groups.__file__).with_name("imagenet_groups.txt")
CATS = range(281, 288)


def test_imagenets_labels_are_torchvisions() -> None:
    assert imagenet_labels() == tuple(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_known_labels_are_the_model_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densescore.models.registry.check_weights_finite", lambda *_: None)  # there are no values
    known = known_labels(name, None)
    with torch.device("meta"):
        classifier = load_classifier(name, weights=None)
    outputs = [layer.out_features for layer in classifier.module.modules() if isinstance(layer, nn.Linear)][-1]
    assert known is None or (known == classifier.labels and len(known) == outputs)
    assert known == known_labels(name, "default")


def test_labels_of_files(tmp_path: Path) -> None:
    head = HeadFile(AdaptationHead(4, 2), ("dog", "background"), "lite0", (0.5,) * 3, (0.5,) * 3, 224)
    save_head(tmp_path / "head.safetensors", head)
    save_weights(tmp_path / "own.safetensors", {"w": torch.zeros(1)}, ("a", "b, c"))
    save_file({"w": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert known_labels(tmp_path / "head.safetensors", "default") == ("dog", "background")
    assert known_labels("krizhevsky", tmp_path / "own.safetensors") == ("a", "b, c")
    assert known_labels("krizhevsky", tmp_path / "bare.safetensors") is None
    assert known_labels("krizhevsky", tmp_path / "own.pt") is None
    assert known_labels("no such model", "default") is None


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_broken_head_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DensescoreError, match=r"head\.safetensors: cannot be read"):
        known_labels(path, "default")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
        (b"cat\ndog\ncat\n", "line 3 repeats the label 'cat' of line 1"),
        (b"\xff\xfec\x00a\x00", "cannot be read as UTF-8"),
        (None, "no such file of labels"),
        ("/dev/zero", "no such file of labels"),
    ],
)
def test_broken_label_files_are_refused(content: bytes | str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.symlink_to(content)  # a device
    with pytest.raises(DensescoreError, match=f"classes.txt: .*{message}"):
        read_label_file(path)


@pytest.mark.parametrize(
    ("name", "label", "columns", "is_group"),
    [
        ("dog", "dog", range(151, 269), True),
        ("DOG", "dog", range(151, 269), True),
        ("domestic dog", "domestic dog", range(151, 269), True),
        ("welsh corgi", "Welsh corgi", (263, 264), True),  # WordNet's own spelling
        ("n02084071", "n02084071", range(151, 269), True),
        ("N02084071", "n02084071", range(151, 269), True),
        ("cat", "cat", CATS, True),  # the most frequent sense, and the larger one; the other is big cats
        ("car", "car", (407, 436, 468, 511, 609, 627, 656, 661, 751, 817), True),  # no railcars
        ("horse", "horse", (339,), True),  # a group of one, sorrel
        ("entity", "entity", range(1000), True),
        ("tabby", "tabby", (281,), False),
        ("Tabby", "tabby", (281,), False),
        ("tabby cat", "tabby", (281,), False),  # a synonym of a class
        ("n02123045", "tabby", (281,), False),
        ("Carassius Auratus", "goldfish", (1,), False),
        ("crane", "crane", (517,), False),  # a class by its very label; the other meaning is the class crane bird
        ("Cardigan", "Cardigan", (264,), False),  # a dog
        ("cardigan", "cardigan", (474,), False),  # a garment
        ("amphibian", "amphibian", (408,), False),  # a vehicle's label, before the group of frogs and newts
        ("n01627424", "n01627424", range(25, 33), True),  # which is this one
    ],
)
def test_classes_of_a_name(name: str, label: str, columns: range, is_group: bool) -> None:
    assert find_classes(name, imagenet_labels()) == (label, tuple(columns), is_group)
    assert find_classes(label, imagenet_labels()) == (label, tuple(columns), is_group)  # a result's name is a name
    if not is_group:
        assert find_label(name, imagenet_labels()) == columns[0]
    else:
        with pytest.raises(DensescoreError, match=rf"is a group of {len(columns)} class"):
            find_label(name, imagenet_labels())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dogs", "no class 'dogs': did you mean dog,"),
        ("hors", "no class 'hors': did you mean horse,"),
        ("tabbi", "no class 'tabbi': did you mean tabby,"),
        ("retreiver", "did you mean retriever"),
        ("tv", "no class 'tv': the network has 1000 others"),
        ("", "no class '': the network has 1000 others"),
        ("n00000000", "no class 'n00000000'"),
        ("CARDIGAN", "class 'CARDIGAN' has 2 meanings; choose one by its number: n02963159 .*; n02113186 .*corgi"),
        ("panda", "has 2 meanings; .*n02510455 .giant panda, panda: giant panda.; n02509815 .lesser panda"),
        ("plant", "has 2 meanings; .*n03956922 .plant, works: lumbermill.; n00017222 .plant, flora: daisy and 1 more"),
        ("toy", "has 2 meanings; .*n03964744 .plaything, toy: swing and 1 more.; n02085374 .toy dog, toy: Chihuahua"),
    ],
)
def test_unknown_and_ambiguous_names(name: str, message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        find_classes(name, imagenet_labels())


@pytest.mark.parametrize(
    ("name", "labels", "found"),
    [
        ("dog", ("cat", "dog"), "dog"),
        ("Dog", ("cat", "dog"), "dog"),
        ("Dog", ("Dog", "dog"), "Dog"),
        ("ß", ("STRASSE", "SS"), "SS"),
        ("DOG", ("Dog", "dog"), None),  # which of them?
        ("dog", ("beagle", "pug"), None),  # groups are of ImageNet's 1,000 labels alone
        ("dog", imagenet_labels()[:999], None),
        ("dog", (*imagenet_labels()[:999], "dog"), "dog"),
        ("dog", ("dog (0)", "dog (1)"), None),
    ],
)
def test_other_labels_have_no_groups(name: str, labels: tuple[str, ...], found: str | None) -> None:
    if found is None:
        with pytest.raises(DensescoreError, match="class "):
            find_classes(name, labels)
    else:
        assert find_classes(name, labels) == (found, (labels.index(found),), False)


def test_every_label_is_the_class_itself_and_every_wnid_is_known() -> None:
    labels = imagenet_labels()
    for column, (label, wnid) in enumerate(zip(labels, ilsvrc(), strict=True)):
        assert find_classes(label, labels) == (label, (column,), False)
        assert find_classes(wnid, labels) == (label, (column,), False)


def test_every_noun_of_the_table_is_found_or_ambiguous() -> None:
    found = 0
    for name in groups.group_names():
        meanings = groups.meanings_of(name)
        main = groups.main_meaning(meanings)
        if main is not None:
            found += 1
            assert len(main.columns) >= max(len(meaning.columns) for meaning in meanings)
            assert name in (groups.spelling(name), *main.words)
    assert 3000 < found < len(groups.group_names())


@pytest.mark.skipif(not (DEFAULT_WORDNET / "index.noun").is_file(), reason="needs WordNet 3.0 (wordnet-base)")
def test_the_table_is_what_the_script_makes() -> None:
    assert TABLE.read_text("utf-8").splitlines() == group_lines()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in TABLE.with_suffix(".LICENSE.txt").read_text()


def test_the_script_on_a_small_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """entity > animal > (cat, dog); a dog is an animal and a pet; "pet" is also another word for cat."""
    synsets = {
        "00000001": ("entity", ""), "00000002": ("animal", "00000001"), "00000003": ("cat pet", "00000002"),
        "00000004": ("dog", "00000002 00000005"), "00000005": ("pet", "00000001"), "00000006": ("stone", "00000001"),
    }  # fmt: skip
    lines = ["  1 license"]
    for offset, (words, above) in synsets.items():
        nouns = " ".join(f"{word} 0" for word in words.split())
        pointers = [f"@ {other} n 0000" for other in above.split()]
        lines.append(" ".join([offset, "03 n", f"{len(words.split()):02x}", nouns, f"{len(pointers):03d}", *pointers]))
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    (tmp_path / "index.noun").write_text("  1 license\npet n 2 1 @ 2 0 00000005 00000003  \ncat n 1 0 1 0 00000003  \n")
    ilsvrc = ("n00000003", "n00000004", "n00000006")
    monkeypatch.setattr("densescore.paper.pretrain.imagenet_groups.ilsvrc", lambda: ilsvrc)
    assert group_lines(tmp_path) == [
        "n00000001\t0-2\tentity", "n00000002\t0-1\tanimal", "n00000003\tclass 0\tcat, pet=2",
        "n00000004\tclass 1\tdog", "n00000005\t1\tpet=1", "n00000006\tclass 2\tstone",
    ]  # fmt: skip
    (tmp_path / "index.noun").unlink()
    with pytest.raises(DensescoreError, match=r"index\.noun: no such file"):
        group_lines(tmp_path)
