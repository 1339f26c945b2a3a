"""Names go into results reversibly, and become distinct file names and labels; JSON has finite numbers only."""

import json
import os
import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.io import names as io_names
from densescore.io.names import as_message, as_text, folder_names, from_text, label_file_names, shorten, unique_labels

ANY = st.text(st.characters(), max_size=20)  # lone surrogates, too
CLOSE = st.text(st.sampled_from('ab/_ -23AB.é"é"İ'), max_size=5)  # names that collide easily


@given(ANY | CLOSE)
def test_a_name_as_text_is_unicode_and_comes_back(name: str) -> None:
    text = as_text(name)
    text.encode()
    assert from_text(text) == name
    as_message(name).encode()


def test_usual_names_stand_for_themselves() -> None:
    for name in ("a.png", "café/ü.jpg", "[bold]x[/]", "x\x1b[31m", "日本.png", "a\\xe9.png", "it's"):
        assert as_text(name) == name
    assert as_text("caf\udce9") == '"caf\\udce9"'
    assert os.fsencode(from_text(as_text(os.fsdecode(b"caf\xe9")))) == b"caf\xe9"
    assert io_names.text_values({"a": ["\ud800", 1, None, ("x",)]}) == {"a": ['"\\ud800"', 1, None, ["x"]]}


@given(st.lists(CLOSE | ANY | st.sampled_from(["con", "NUL", "x" * 300, "é" * 150, "..", ""]), max_size=12))
def test_file_names_are_distinct_wherever_they_are_written(labels: list[str]) -> None:
    for names in (label_file_names(labels), folder_names(label.replace("/", "").replace("\0", "") for label in labels)):
        assert len(names) == len(labels)
        for form in ("NFC", "NFD"):  # as systems that are blind to case, and that decompose, store them
            assert len({unicodedata.normalize(form, name).casefold() for name in names}) == len(names)
        for name in names:
            assert name not in ("", ".", "..")
            assert not {"/", "\0"} & set(name)
            assert len(f"{name}.npz".encode("utf-8", "surrogatepass")) <= 255
            assert name.split(".")[0].lower() not in ("con", "nul")
            assert not name.endswith((" ", "."))


@given(st.permutations(["a_b", "a_b-3", "a/b", "A b", "a_b-2"]))
def test_names_depend_on_all_classes_and_not_on_those_written(labels: list[str]) -> None:
    names = label_file_names(labels)
    assert len({name.lower() for name in names}) == 5
    assert names[:3] == label_file_names(labels[:3])  # a class's name follows from those before it
    assert names[0] == label_file_names(labels[:1])[0]


def test_usual_labels_stay_readable() -> None:
    assert label_file_names(["Egyptian cat", "tabby", "hot-dog", "black-and-tan", "日本"]) == [
        "Egyptian_cat", "tabby", "hot-dog", "black-and-tan", "日本",
    ]  # fmt: skip
    assert label_file_names(["Egyptian cat", "a/b", "a b", "A_B"]) == ["Egyptian_cat", "a_b", "a_b-2", "A_B-3"]
    assert folder_names(["my photo", "x[1]", ".hidden"]) == ["my photo", "x[1]", ".hidden"]
    assert folder_names(["cat", "dog", "cat", "."]) == ["cat", "dog", "cat-2", "image"]
    assert unique_labels(["crane", "dog", "crane"]) == ("crane (0)", "dog", "crane (2)")


def test_a_long_name_keeps_its_beginning_and_a_digest() -> None:
    one, other = "é" * 124 + "a", "é" * 124 + "b"
    assert len({shorten(one), shorten(other)}) == 2
    assert shorten(one).startswith("é" * 90)
    assert len(shorten(one).encode()) <= 200
    assert shorten("x" * 200) == "x" * 200
    assert len(set(io_names.distinct(["y" * 300, "y" * 301, "y" * 300]))) == 3


@pytest.mark.parametrize("depth", [1, 2, 3000])
def test_a_name_that_is_taken_gets_its_index_again(depth: int) -> None:
    chain = ["x" + " (0)" * number for number in range(depth)]
    assert unique_labels(["x", *chain]) == ("x" + " (0)" * depth, "x (1)", *chain[1:])


@given(st.lists(st.sampled_from(["x", "x (0)", "x (1)", "x (0) (0)", "x (1) (0)", "x (0) (2)", "y", ""]), max_size=12))
def test_all_labels_differ_and_single_ones_keep_their_name(labels: list[str]) -> None:
    unique = unique_labels(labels)
    assert len(set(unique)) == len(labels)
    assert unique_labels(unique) == unique
    for label, name in zip(labels, unique, strict=True):
        assert name == label or (labels.count(label) > 1 and name.startswith(f"{label} ("))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("wrap", "place"),
    [(lambda x: x, "value"), (lambda x: {"a": [1.0, x]}, "value['a'][1]"), (lambda x: [(0, {"b": x})], "[0][1]['b']")],
)
def test_json_has_finite_numbers_only(value: float, wrap: Callable[[float], object], place: str) -> None:
    with pytest.raises(DensescoreError, match=re.escape(f"{place} is {value}; expected finite numbers")):
        io_names.to_json(wrap(value))
    assert io_names.to_json(wrap(0.5)) == json.dumps(wrap(0.5))
