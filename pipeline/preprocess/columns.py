"""Names of the columns that the job adds to a batch of raw rows, and of the splits."""

#: uint64, random, the same on every engine: the row's identity and its place in the shuffle.
KEY = "_key"
#: int64, the row's place in its piece, from 0; dropped once the row is checked.
POSITION = "_position"
#: int64, 0 or 1.
LABEL = "_label"
#: int64, microseconds since 1970 UTC; 0 without a timestamp.
TIME = "_time"
#: uint64, hash of the user; 0 without one.
USER = "_user"
#: int8, a position in SPLITS, or GAP.
SPLIT = "_split"

#: Names that no column which is carried along may have.
RESERVED = (KEY, POSITION, LABEL, TIME, USER, SPLIT)

SPLITS = ("train", "validation", "test")
#: The split of a row that is left out because it lies too close to the split after its own.
GAP = -1
