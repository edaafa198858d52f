"""The columns of the package's tables: what the static compiler writes and the linker reads.

It must not know how either works. All tables are int32.
"""

from __future__ import annotations

# A step is what shares one set of on-chip buffers: loads, then compute instructions, then saves; its instructions
# follow each other
# in the order of these counts. Steps that follow each other on a core with equal keys share their weights or features.
# The last three: what the weight loads take up of the weight and parameter memories, and of the tables.
STEP_COLUMNS = (
    "first_instruction", "weight_loads", "feature_loads", "operand_loads", "computes", "saves", "weight_key",
    "feature_key", "weight_words", "parameter_words", "tables",
)  # fmt: skip

# An instruction frame package (IFP): one tile of one layer. Regions are half-open, rows of the true map and blocks of
# the storage.
# ``flat_start``: first pixel of the tile if its map's rows are joined (``width`` is that of a true row), else -1.
# ``flat_end``: the pixel behind it if these pixels are also all that is read of input and operand, else -1.
IFP_COLUMNS = (
    "first_step", "steps", "latency", "out_row", "out_row_end", "out_block", "out_block_end", "in_row", "in_row_end",
    "in_block",
    "in_block_end", "operand_row", "operand_row_end", "operand_block", "operand_block_end",
    "flat_start", "width", "flat_end",
)  # fmt: skip

# A layer: its tilings, into how many buffers it divides the result memory, the layers that read its result, and the
# last layer whose result it reads (-1: none).
LAYER_COLUMNS = ("first_tiling", "tilings", "result_buffers", "is_output", "first_consumer", "consumers", "producer")

CONSUMER_COLUMNS = ("layer", "as_operand")

TILING_COLUMNS = ("first_ifp", "ifps")

# An entry of the choice table: the number of the layer's tiling, and IDLE times the number of cores that get nothing
# (the last ones, in the order in which cores are given to the linker: those of the bank that is filled least).
IDLE = 256
MAX_CORES = 16  # columns of the choice table: the tiling of each layer for 1 .. 16 cores
