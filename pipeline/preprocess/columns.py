"""Names of the columns that the job adds to raw rows, and of the splits."""

#: uint64, random, the same on every engine: the row's identity and its position in the shuffle.
KEY = "_key"
#: int64, the row's position in its input split, from 0; dropped after the row checks.
POSITION = "_position"
#: int64, 0 or 1.
LABEL = "_label"
#: int64, microseconds since 1970 UTC; 0 without a timestamp.
TIME = "_time"
#: uint64, hash of the user; 0 without one.
USER = "_user"
#: int8, an index of SPLITS, or GAP.
SPLIT = "_split"

#: Names that no column of the log may have.
RESERVED = (KEY, POSITION, LABEL, TIME, USER, SPLIT)

SPLITS = ("train", "validation", "test")
#: The split of a row that is left out because it is too close to the next split.
GAP = -1
