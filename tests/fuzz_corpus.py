"""Examples that failed once, or are of a kind that did: each is checked by every run of the tests (test_fuzz.py)."""

from fuzz import CACHES, Example, Layout

CORPUS = [
    # Without input channels torch makes no output channels, and the gradients were refused.
    Example((2, 0, 1), (1, 0, 1), (1,), padding="same"),
    Example((0, 21), (4, 0, 20), (4,), padding=(2, 1), padding_mode="circular", dtype="bfloat16"),
    # Nothing to replicate, in an empty batch: torch refuses it.
    Example((0, 1, 0), (1, 1, 1), stride=27, padding=(2, 2), padding_mode="replicate"),
    Example((0, 4, 0), (2, 2, 1), groups=2, padding=(0, 2), padding_mode="replicate", dtype="float32"),
    # Of 16 bits, the gradient of a replicated position was rounded once for each residue of a stride.
    Example(
        (1, 4, 674),
        (64, 4, 52),
        stride=202,
        padding=(35, 3),
        padding_mode="replicate",
        dtype="bfloat16",
        integers=True,
        weight_layout=Layout((2, 1, 0), (1, 1, 0)),
        caches=CACHES[1],
    ),
    # Five dimensions: torch's error, rather than one about the padding mode.
    Example((1, 1, 10, 2, 68), (4, 2, 3), padding=(1, 0), dtype="float32"),
    # Where torch itself ends in a segmentation fault.
    Example(
        (6, 6),
        (72, 3, 1),
        stride=43,
        padding=49,
        groups=2,
        dtype="bfloat16",
        weight_layout=Layout((0, 2, 1), (1, 1, 1)),
    ),
    # Tiles of one pack of weights whose rows have different strides.
    Example((1, 60, 400), (20, 60, 3), padding=1, dtype="float32", integers=True, isa="avx512"),
    Example((1, 3, 1500), (5, 3, 24), stride=12, dtype="float32", integers=True, isa="avx512"),
    Example((1, 3, 1500), (5, 3, 24), stride=12, dtype="bfloat16", integers=True, isa="avx2", caches=CACHES[1]),
    # All weights packed at once, for several panels.
    Example((1, 9, 2600), (4, 9, 5), (4,), stride=2, integers=True, isa="avx2", weight_layout=Layout((0, 2, 1))),
    # Depthwise, with a dilation beyond any scratch memory.
    Example((1, 3, 10), (3, 1, 3), padding=200_000, dilation=200_000, groups=3, dtype="float32", integers=True),
    # Columns whose channels are taken in blocks.
    Example((9, 1400, 4), (3, 1400, 3), (3,), dtype="float32", integers=True, isa="avx512", caches=CACHES[2]),
]
