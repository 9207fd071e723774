"""Random crops and flips of image batches on the device: pure functions of a key, for any dtype of pixels.

As in the usual recipes for CIFAR: the image is padded by 4 black pixels, a random window of the old size is cut out,
and half of the images are mirrored left to right. Applied to raw pixels, so that the border is black, not grey.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

PADDING = 4


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
