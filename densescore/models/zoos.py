"""Entries of other packages' networks: ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:USER/NAME``."""

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.models.entry import ModelEntry
from densescore.models.labels import imagenet_labels
from densescore.models.weights import classes_in, load_strict

STRIDE = 32
"""Most classifiers halve their input five times; patches are a whole number of strides wide."""

_INSTEAD = "pass weights= with a file that you have, or weights=None for random ones"


def timm_entry(name: str) -> ModelEntry:
    """A network of timm by architecture, or architecture and tag of its weights: ``resnet50.a1_in1k``."""
    import timm

    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise _unknown("timm", name, tagged)
    config: Any = timm.models.get_pretrained_cfg(name)
    return _of_config(f"timm:{name}", name, name, config, bool(tagged))


def hub_entry(name: str) -> ModelEntry:
    """A network in timm's format in a repository of the Hugging Face Hub: ``user/name``."""
    from timm.models import PretrainedCfg, load_model_config_from_hf

    try:
        values, architecture, _ = load_model_config_from_hf(name)
    except Exception as error:  # the hub and the connection raise many kinds
        reason = f"neither a head of densescore nor a network of timm can be loaded: {reason_of(error)}"
        raise DensescoreError(f"hf-hub:{name}: {reason}") from error
    known = {field.name for field in fields(PretrainedCfg)}
    config = PretrainedCfg(**{key: value for key, value in values.items() if key in known})
    return _of_config(f"hf-hub:{name}", architecture, f"hf-hub:{name}", config, True)


def _of_config(name: str, architecture: str, weights: str, config: Any, is_published: bool) -> ModelEntry:
    """An entry by timm's configuration; `architecture` and `weights` are names for timm."""
    side, classes = max(config.input_size[1:]), config.num_classes
    return ModelEntry(
        description=f"timm's {architecture}",
        build=partial(_build, partial(_create_timm, architecture), classes or 1000, name),
        published=partial(_download_timm, name, weights) if is_published and classes else None,
        license=config.license or "not stated by timm",
        origin="timm, downloaded on first use",
        mean=tuple(config.mean),
        std=tuple(config.std),
        patch_size=side if config.fixed_input_size else _whole_strides(side),
        labels=partial(_timm_labels, config),
    )


def torchvision_model(name: str, description: str, **preprocessing: Any) -> ModelEntry:
    """A classifier of torchvision with its default weights."""
    return ModelEntry(
        description,
        build=partial(_build, partial(_create_torchvision, name), 1000, name),
        published=partial(_download_torchvision, name),
        license="BSD-3-Clause",
        origin="torchvision, downloaded on first use",
        **preprocessing,
    )


def torchvision_entry(name: str) -> ModelEntry:
    """A classifier of torchvision with the preprocessing of its default weights."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    side = max(transforms.crop_size)
    return torchvision_model(
        name,
        f"torchvision's {name}",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        patch_size=side if name.startswith("vit_") else _whole_strides(side),
        labels=lambda: tuple(weights.meta["categories"]),
    )


ZOOS: dict[str, Callable[[str], ModelEntry]] = {
    "timm": timm_entry, "torchvision": torchvision_entry, "hf-hub": hub_entry
}  # fmt: skip
"""Prefix of a name → entry of the name after the colon."""


def zoo_names() -> Iterator[str]:
    """Every ``torchvision:NAME`` and ``timm:NAME`` that has published weights and classes."""
    import timm
    import torchvision

    yield from (f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models))
    for name in timm.list_pretrained():
        config: Any = timm.models.get_pretrained_cfg(name)
        if config.num_classes:  # others are feature extractors
            yield f"timm:{name}"


def near_names(name: str, known: Sequence[str]) -> str:
    """``"; did you mean …?"`` with the known names most like `name`, or nothing."""
    same = [other for other in known if name and other.partition(":")[2].partition(".")[0] == name]
    near = same[:4] or difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _unknown(zoo: str, name: str, known: Sequence[str]) -> DensescoreError:
    hint = near_names(name, known)
    return DensescoreError(f"{zoo} has no network {name!r}{hint or '; `densescore models --all` lists them'}")


def _build(
    create: Callable[[int], nn.Module], classes: int, origin: str, weights: dict[str, Tensor] | None
) -> nn.Module:
    """The network with `weights`, which set the number of classes by their last layer, or with random ones."""
    network = create(classes)
    if weights is None:
        return network
    count = classes_in(weights, f"{_last_layer(network, classes)}.weight", classes)
    network = network if count == classes else create(count)
    load_strict(network, weights, f"weights for {origin}")
    return network


def _last_layer(network: nn.Module, classes: int) -> str:
    """The name of the last layer with one output per class."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    names = [name for name, layer in layers if len(layer.weight) == classes]
    return names[-1] if names else ""


def _create_timm(name: str, classes: int) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=classes)
    return network


def _create_torchvision(name: str, classes: int) -> nn.Module:
    import torchvision

    # These two rescale their input when they have published weights, which were trained with other means.
    rescales = name in ("googlenet", "inception_v3")
    options = {"transform_input": True, "init_weights": False} if rescales else {}  # drawing weights is slow
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return network


def _download_timm(name: str, source: str) -> dict[str, Tensor]:
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry of a download is a line otherwise
    try:
        state: dict[str, Tensor] = timm.create_model(source, pretrained=True).state_dict()
    except Exception as error:  # the hub and the network raise many kinds
        reason = f"its weights could not be downloaded ({reason_of(error)})"
        raise DensescoreError(f"{name}: {reason}; {_INSTEAD}") from error
    return state


def _download_torchvision(name: str) -> dict[str, Tensor]:
    """The default weights, by torchvision's own loading code."""
    import torchvision

    try:
        state: dict[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        reason = f"torchvision could not download its weights ({reason_of(error)})"
        raise DensescoreError(f"{name}: {reason}; {_INSTEAD}") from error
    return state


def _timm_labels(config: Any) -> tuple[str, ...]:
    """Class names of a configuration of timm; numbers if timm does not know them."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    if config.label_names:
        return tuple(config.label_names)
    if config.num_classes == 1000:
        return imagenet_labels()
    subset = infer_imagenet_subset(config.to_dict())
    if subset is None:
        return tuple(f"class {index}" for index in range(config.num_classes))
    info = ImageNetInfo(subset)
    names = info.label_descriptions()
    counts = Counter(names)
    return tuple(
        f"{name} ({wordnet_id})" if counts[name] > 1 else name
        for name, wordnet_id in zip(names, info.label_names(), strict=True)
    )


def _whole_strides(side: int) -> int:
    """The side, rounded up to a whole number of strides."""
    return -(-side // STRIDE) * STRIDE
