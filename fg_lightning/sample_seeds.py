"""A seed for each sample of a batch that does not depend on the other samples."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped
from torch import Tensor, uint8

Seed = Union[int, np.integer[Any], Sequence[int], npt.NDArray[np.integer[Any]], Tensor]
"""One seed for all samples, or one for each."""


def seeds_of(samples: Shaped[Tensor, "n ..."], seed: Seed) -> list[int]:
    """One seed for each sample.

    Args:
        samples: [N, ...].
        seed: a sequence is returned as a list. An int is combined with a checksum of each sample's values.

    Raises:
        ValueError: if there are not as many seeds as samples.
    """
    if isinstance(seed, (int, np.integer)):
        contents = samples.detach().cpu().contiguous().flatten(1).view(uint8).numpy()
        # torch's generator on the CPU uses the lower 32 bits of a seed.
        return [zlib.crc32(content, int(seed) % 2**32) for content in contents]
    if len(seed) != len(samples):
        raise ValueError(f"seed holds {len(seed)} numbers; give one int, or one int for each of {len(samples)} images")
    return [int(own) for own in seed]
