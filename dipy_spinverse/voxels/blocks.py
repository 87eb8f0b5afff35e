"""Voxels that are computed together: always the same ones, so that a result hangs on nothing else.

Sums over several voxels at once are rounded by how many there are. The blocks of an image follow
from its voxels and the model alone; chunks, which are handed to a process and kept in a journal
together, hold whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.progress import stepwise

# So many voxels together cost hardly more for each than all of an image.
_LEAST_VOXELS = 512
# Of larger images, so that several processes have work.
_LEAST_BLOCKS = 16
ChunkFit = Callable[[Voxels], Mapping[str, ArrayLike]]


def voxels_per_block(n_voxels: int, most: int) -> int:
    """Voxels of an image that are computed together, by a model that can have so many at most."""
    return max(min(most, max(_LEAST_VOXELS, -(-n_voxels // _LEAST_BLOCKS))), 1)


@dataclass(frozen=True)
class InBlocks:
    """The fit of a chunk, block by block.

    Attributes
    ----------
    fit_block : callable
        Named arrays (V, ...) of a block; a number holds for all of its voxels.
    size : int
        Voxels of a block; the last may have fewer.
    """

    fit_block: ChunkFit
    size: int

    def __call__(self, voxels: Voxels) -> Mapping[str, ArrayLike]:
        """The arrays of all blocks, one after the other."""
        blocks = [voxels[first : first + self.size] for first in range(0, len(voxels), self.size)]
        found = [self.fit_block(block) for block in stepwise(blocks)]
        if len(found) == 1:
            return found[0]
        sizes = [len(block) for block in blocks]
        return {name: _joined([each[name] for each in found], sizes) for name in found[0]}


def _joined(values: list[Any], sizes: list[int]) -> Any:
    """Values of blocks as one array, as wide as the widest; a number that all have as it is."""
    arrays = [np.asarray(value) for value in values]
    if all(array.ndim == 0 and array == arrays[0] for array in arrays):
        return values[0]
    widest = np.max([array.shape[1:] for array in arrays], axis=0, initial=0).astype(int)
    whole = np.zeros((sum(sizes), *widest), np.result_type(*arrays))
    first = 0
    for array, size in zip(arrays, sizes, strict=True):
        whole[(slice(first, first + size), *map(slice, array.shape[1:]))] = array
        first += size
    return whole
