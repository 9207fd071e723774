"""Random crops, flips and rotations of image batches on the device: pure functions of a key, for any dtype of pixels.

As in the usual recipes for CIFAR: the image is padded by 4 black pixels, a random window of the old size is cut out,
and half of the images are mirrored left to right. The MimicNorm authors then turn it by up to 15 degrees. Applied to
raw pixels, so that the border is black, not grey.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

PADDING = 4
ROTATION, DROPOUT = 2, 3  # numbers of the keys made of a step's key, beside those of crops (0) and flips (1)


def random_crop(
    key: Key[Array, ""], images: Shaped[Array, "n h w c"], padding: int = PADDING
) -> Shaped[Array, "n h w c"]:
    """A random window of each padded image, all (2 padding + 1)^2 positions equally likely.

    Args:
        key: key of JAX's random numbers.
        images: images of shape (n, h, w, c), of any dtype.
        padding: number of pixels of value 0 added on every side; 0 crops nothing.

    Raises:
        ValueError: padding is negative.
    """
    if padding < 0:
        raise ValueError(f"got padding={padding}: expected 0 or more pixels")
    n, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (n, 2), 0, 2 * padding + 1, jnp.int32)

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (h, w, c))

    return jax.vmap(window)(padded, corners)


def random_flip(key: Key[Array, ""], images: Shaped[Array, "n h w c"]) -> Shaped[Array, "n h w c"]:
    """The images, each mirrored left to right with probability 1/2."""
    flips = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def crop_and_flip(
    key: Key[Array, ""], images: Shaped[Array, "n h w c"], padding: int = PADDING
) -> Shaped[Array, "n h w c"]:
    """The images after `random_crop` and `random_flip`, with independent random numbers."""
    crops, flips = jax.random.split(key)
    return random_flip(flips, random_crop(crops, images, padding))


def rotated(images: Shaped[Array, "n h w c"], degrees: Float[Array, " n"]) -> Shaped[Array, "n h w c"]:
    """The images, each turned about its middle by its own angle, anticlockwise.

    A pixel has the value of the nearest one where it came from, or 0 if that is outside, as in Pillow and torchvision.
    """
    h, w = images.shape[1:3]
    y, x = (jnp.arange(length, dtype=jnp.float32) - (length - 1) / 2 for length in (h, w))
    y, x = jnp.meshgrid(y, x, indexing="ij")

    def turned(image: jax.Array, angle: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        column = jnp.floor(cos * x - sin * y + w / 2).astype(jnp.int32)
        row = jnp.floor(sin * x + cos * y + h / 2).astype(jnp.int32)
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        return jnp.where(inside[..., None], image[jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)], 0)

    return jax.vmap(turned)(images, jnp.deg2rad(degrees))


def random_rotation(key: Key[Array, ""], images: Shaped[Array, "n h w c"], degrees: float) -> Shaped[Array, "n h w c"]:
    """The images, `rotated` by independent angles that are uniform within +-degrees."""
    return rotated(images, jax.random.uniform(key, (len(images),), jnp.float32, -degrees, degrees))


def augmented(key: Key[Array, ""], images: Shaped[Array, "n h w c"], rotation: float = 0.0) -> Shaped[Array, "n h w c"]:
    """The images after `crop_and_flip` and, by up to `rotation` degrees, `random_rotation`."""
    images = crop_and_flip(key, images)
    return random_rotation(jax.random.fold_in(key, ROTATION), images, rotation) if rotation else images
