"""The order in which an epoch reads its rows: a function of the seed and of the files' shape.

The rows on disk are in a random order, the same in every epoch. An epoch permutes the files, then the blocks within each
window of consecutive blocks, then the rows within each chunk of blocks that are parsed together. Every draw is a
function of the seed and of a position. So a resumed run computes where its next row is, and rereads only the window that
holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clsd.features.arrays import Int64s
from clsd.features.tf_runtime import Tensor, tf


class Start(NamedTuple):
    """The position of a row in an epoch.

    Args:
        file: index of the file, in the epoch's order.
        record: index in that file of the window's first record.
        window: index of the window in the epoch.
        chunk: index of the chunk in the window.
        row: index of the row in the chunk, after the permutation.
    """

    file: int = 0
    record: int = 0
    window: int = 0
    chunk: int = 0
    row: int = 0


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Args:
        seed: seed of its draws.
        chunk_blocks: blocks per chunk.
        window_chunks: chunks per window.
    """

    seed: int
    chunk_blocks: int
    window_chunks: int

    @property
    def window_blocks(self) -> int:
        """Blocks per window; they are held in memory."""
        return self.chunk_blocks * self.window_chunks

    def files(self, n: int) -> Int64s:
        """The order of n files, int64 ``[n]``."""
        return np.random.default_rng(self.seed).permutation(n)

    def blocks(self, window: Tensor, n: Tensor) -> Tensor:
        """The order of a window's n blocks, int32 ``[n]``; computed on the CPU."""
        return self._permutation(n, -1 - tf.cast(window, tf.int64))

    def rows(self, chunk: Tensor, n: Tensor) -> Tensor:
        """The order of the n rows of a chunk, int32 ``[n]``; ``chunk`` counts from the epoch's first one."""
        return self._permutation(n, tf.cast(chunk, tf.int64))

    def _permutation(self, n: Tensor, position: Tensor) -> Tensor:
        with tf.device("/cpu:0"):
            seed = tf.stack([tf.constant(self.seed, tf.int64), position])
            return tf.random.experimental.stateless_shuffle(tf.range(n), seed=seed)

    def find(self, row: int, file_rows: Sequence[int], rows_per_block: int) -> Start:
        """The position of the epoch's row number ``row``.

        Args:
            row: from 0, less than the sum of ``file_rows``.
            file_rows: rows of each file, in the order on disk.
            rows_per_block: rows of every block except the last of a file.
        """
        rows_of_files = np.asarray(file_rows, np.int64)[self.files(len(file_rows))]
        blocks = -(-rows_of_files // rows_per_block)
        ends = np.cumsum(blocks)
        sizes = np.full(ends[-1], rows_per_block, np.int64)
        # The last block of each file may be shorter; a file may have no block.
        np.subtract.at(sizes, ends - 1, blocks * rows_per_block - rows_of_files)
        window, row = _within(sizes, self.window_blocks, row)
        first = window * self.window_blocks
        window_sizes = sizes[first : first + self.window_blocks]
        chunk, row = _within(window_sizes[self.blocks(window, len(window_sizes)).numpy()], self.chunk_blocks, row)
        file = int(np.searchsorted(ends, first, side="right"))
        return Start(file, int(first - ends[file] + blocks[file]), window, chunk, row)


def _within(sizes: Int64s, group_size: int, row: int) -> tuple[int, int]:
    """The group of ``group_size`` consecutive sizes that a row is in, and the row's index in that group."""
    ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), group_size)))
    group = int(np.searchsorted(ends, row, side="right"))
    return group, int(row - (ends[group - 1] if group else 0))
