"""Labels that repeat get distinct names, whatever other labels are called; JSON has finite numbers only."""

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.io.names import to_json, unique_labels

NAMES = st.sampled_from(["x", "x (0)", "x (1)", "x (0) (0)", "x (1) (0)", "y", ""])


@pytest.mark.parametrize("depth", [1, 2, 3000])
def test_a_name_that_is_taken_gets_its_index_again(depth: int) -> None:
    chain = ["x" + " (0)" * number for number in range(depth)]
    assert unique_labels(["x", *chain]) == ("x" + " (0)" * depth, "x (1)", *chain[1:])


@given(st.lists(NAMES, max_size=12))
def test_all_labels_differ_and_single_ones_keep_their_name(labels: list[str]) -> None:
    unique = unique_labels(labels)
    assert len(set(unique)) == len(labels)
    assert unique_labels(unique) == unique
    for label, name in zip(labels, unique, strict=True):
        assert name.startswith(label)
        assert name == label or labels.count(label) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("wrap", "place"),
    [(lambda x: x, "value"), (lambda x: {"a": [1.0, x]}, "value['a'][1]"), (lambda x: [(0, {"b": x})], "[0][1]['b']")],
)
def test_json_has_finite_numbers_only(value: float, wrap: Callable[[float], object], place: str) -> None:
    with pytest.raises(DensescoreError, match=re.escape(f"{place} is {value}; expected finite numbers")):
        to_json(wrap(value))
    assert to_json(wrap(0.5)) == json.dumps(wrap(0.5))
