"""Values that are found once per network."""

import functools
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from densescore.network.dense_network import DenseNetwork

Value = TypeVar("Value")


def once(find: Callable[[DenseNetwork], Value]) -> Callable[[DenseNetwork], Value]:
    """Compute a value once per network, and keep it as long as the network lives."""
    found: WeakKeyDictionary[DenseNetwork, Value] = WeakKeyDictionary()

    @functools.wraps(find)
    def remembered(network: DenseNetwork) -> Value:
        if network not in found:
            found[network] = find(network)
        return found[network]

    return remembered
