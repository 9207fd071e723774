"""Mathematics of pairs of Gaussian pre-activations: angles that keep their digits, and Gauss-Hermite quadrature.

A pair of centred Gaussians is described by two variances and the **cosine distance** d = 1 - correlation. Close to
correlation one a float can hold d to full relative precision and 1 - d to none of it, so everything in this library
that depends on how different two inputs are is a function of d.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import roots_hermitenorm

MAX_NODES = 256  # beyond about 340 nodes the outermost weights underflow in float64 and orthonormality is lost


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root of max(x, 0) whose gradient at 0 is 0 and not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def geometric_mean(x: jax.Array, y: jax.Array) -> jax.Array:
    """sqrt(x y) for x, y >= 0; the product of roots, so that variances of 1e-200 do not underflow on the way."""
    return safe_sqrt(x) * safe_sqrt(y)


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: jax.Array | float) -> jax.Array:
    """numerator / denominator, and `otherwise` where the denominator is 0; gradients stay finite."""
    usable = denominator != 0
    return jnp.where(usable, numerator / jnp.where(usable, denominator, 1), otherwise)


def into_range(distance: jax.Array) -> jax.Array:
    """Cosine distances pushed back into [0, 2] after rounding; the gradient at exactly 0 and 2 stays whole."""
    return jnp.where(distance < 0, 0, jnp.where(distance > 2, 2, distance))


@jax.custom_jvp
def angle(distance: jax.Array) -> jax.Array:
    """Angle in radians, in [0, pi], between vectors at this cosine distance, in [0, 2].

    Full relative precision near 0. The derivative 1/sin(angle) is infinite at both ends; 0 stands there instead.
    """
    return jnp.arctan2(jnp.sqrt(distance * (2 - distance)), 1 - distance)


@angle.defjvp
def _angle_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (distance,), (tangent,) = primals, tangents
    sine = safe_sqrt(distance * (2 - distance))
    return angle(distance), safe_divide(jnp.ones_like(sine), sine, 0.0) * tangent


@jax.custom_jvp
def sine_minus_angle_cosine(distance: jax.Array) -> jax.Array:
    """sin(t) - t cos(t) at the angle t of this cosine distance: what bends the dual activation of |x| and ReLU.

    Of order t^3 near 0, where it stands beside d = t^2/2: its rounding error of order eps t costs a relative eps/t.
    Its derivative in the distance is t, finite everywhere, though the chain rule passes through infinity.
    """
    theta = angle(distance)
    return jnp.sin(theta) - theta * (1 - distance)


@sine_minus_angle_cosine.defjvp
def _sine_minus_angle_cosine_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (distance,), (tangent,) = primals, tangents
    return sine_minus_angle_cosine(distance), angle(distance) * tangent


def arcsine_difference(x: jax.Array, distance: jax.Array) -> jax.Array:
    """arcsin(x) - arcsin(x (1 - distance)) for 0 <= x < 1, without cancellation at small distances.

    From sin a - sin b = 2 cos((a + b)/2) sin((a - b)/2). Beyond a quarter turn the half-angle form would lose digits
    and the plain difference does not.
    """
    near = distance < 1
    close = jnp.where(near, distance, 0)
    middle = (jnp.arcsin(x) + jnp.arcsin(x * (1 - close))) / 2
    halved = 2 * jnp.arcsin(x * close / (2 * jnp.cos(middle)))
    plain = jnp.arcsin(x) - jnp.arcsin(x * (1 - distance))
    return jnp.where(near, halved, plain)


@functools.cache
def gauss_hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, float64 (nodes,) each, of E[f(z)] = sum_j w_j f(z_j), z ~ N(0, 1).

    Exact for polynomials up to degree 2 nodes - 1. For analytic f the error falls like exp(-c sqrt(nodes)), c growing
    with the distance of f's nearest pole from the real axis; for an f with a kink like 1/nodes.
    """
    if not 2 <= nodes <= MAX_NODES:
        raise ValueError(f"got {nodes} Gauss-Hermite nodes, expected 2 to {MAX_NODES}")
    points, weights = roots_hermitenorm(nodes)
    return points, weights / weights.sum()


@functools.cache
def hermite_analysis(nodes: int) -> np.ndarray:
    """Matrix (nodes, nodes) that turns values f(z_j) into the coefficients a_k = E[f(z) h_k(z)], k < nodes.

    h_k are the orthonormal (probabilists') Hermite polynomials. They are orthonormal under the discrete rule too, so
    sum_k a_k^2 equals the quadrature's own E[f^2] exactly: nothing is lost at correlation one.
    """
    points, weights = gauss_hermite(nodes)
    basis = np.empty((nodes, nodes))
    basis[0], basis[1] = 1.0, points
    for k in range(1, nodes - 1):
        basis[k + 1] = (points * basis[k] - np.sqrt(k) * basis[k - 1]) / np.sqrt(k + 1)
    return (basis * weights).T


def hermite_coefficients(f: Callable[[jax.Array], jax.Array], variance: jax.Array, nodes: int) -> jax.Array:
    """Coefficients a_k(q) of f(sqrt(q) z) in the orthonormal Hermite polynomials, shape (nodes, *variance.shape).

    By Mehler's formula E[f(u) g(v)] = sum_k a_k(q_u) b_k(q_v) rho^k for Gaussians u, v with correlation rho.
    """
    points, _ = gauss_hermite(nodes)
    deviation = safe_sqrt(variance)[..., None]
    values = f(deviation * jnp.asarray(points, variance.dtype).reshape((1,) * variance.ndim + (nodes,)))
    matrix = jnp.asarray(hermite_analysis(nodes), variance.dtype)
    return jnp.moveaxis(jnp.matmul(values, matrix, precision="highest"), -1, 0)
