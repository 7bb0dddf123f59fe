"""The plan: which algorithm a layer gets, and that its memory is bounded whatever the sizes."""

import itertools
import math
from collections.abc import Iterator

import pytest

from conv1d_ext import _C
from conv1d_ext.backends import cpu

OPS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight"]
# (in_channels, out_channels, kernel_size, further geometry): layers of real models, by kind.
LAYERS = {
    "dense": (512, 512, 3, {"padding_left": 1, "padding_right": 1}),
    "strided": (512, 512, 3, {"stride": 2}),
    "pointwise": (1024, 2048, 1, {}),
    "pointwise, few rows": (512, 4, 1, {}),
    "depthwise": (1536, 1536, 4, {"padding_left": 3, "groups": 1536}),
    "grouped": (768, 768, 128, {"padding_left": 64, "padding_right": 64, "groups": 16}),
    "front end": (1, 512, 10, {"stride": 5}),
    "spectrogram": (1, 1025, 2048, {"stride": 512}),
    "dilated": (64, 128, 3, {"padding_left": 512, "padding_right": 512, "dilation": 512}),
    "long and dilated": (64, 64, 128, {"dilation": 512}),
    "many channels": (8192, 8192, 3, {}),
    "depthwise, far apart": (8, 8, 3, {"padding_left": 2 * 10**6, "groups": 8, "dilation": 10**6}),
    "depthwise, strided": (64, 64, 9, {"padding_left": 4, "groups": 64, "stride": 4}),
    "depthwise, strided, far apart": (8, 8, 3, {"groups": 8, "stride": 7, "dilation": 30_000}),
    "depthwise, long": (4, 4, 6000, {"groups": 4, "stride": 3}),
}


@pytest.fixture(autouse=True)
def _without_others() -> Iterator[None]:
    """The matrix unit and Toom-Cook's algorithm, whose plans are in test_amx.py and test_toom_cook.py."""
    with cpu.flags(allow_amx=False, allow_toom_cook=False):
        yield


def plan(
    op: str, kind: str, dtype: str = "float32", batch: int = 1, in_length: int = 100_000, *, allow_fft: bool = False
) -> dict:
    """Of the direct kernels, unless told otherwise: test_fft.py has the plans of the others."""
    in_channels, out_channels, kernel_size, geometry = LAYERS[kind]
    shape = {"batch": batch, "in_channels": in_channels, "in_length": in_length, "out_channels": out_channels}
    with cpu.flags(allow_fft=allow_fft):
        return _C.plan(op, dtype, **shape, kernel_size=kernel_size, **geometry)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("op", OPS)
def test_memory_is_bounded_whatever_the_batch_and_length(op: str, kind: str, dtype: str) -> None:
    for batch, in_length in [(1, 70_000), (1, 10**9), (10**6, 70_000), (10**6, 10**9)]:
        this = plan(op, kind, dtype, batch, in_length)
        assert this["scratch_bytes"] + this["partial_bytes"] + this["packed_bytes"] <= 4 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel_size", [1, 3, 500, 2000])
@pytest.mark.parametrize("channels", [(1, 4096), (4096, 1), (8, 4096), (4096, 8), (64, 1024), (1024, 4096)])
@pytest.mark.parametrize("op", OPS)
def test_memory_is_bounded_whatever_the_kernel(
    op: str, channels: tuple[int, int], kernel_size: int, dtype: str
) -> None:
    for batch, positions, stride in itertools.product((1, 1000), (1, 20, 50, 100, 200), (1, 2, 500)):
        in_length = kernel_size + (positions - 1) * stride
        shape = {"batch": batch, "in_channels": channels[0], "in_length": in_length, "out_channels": channels[1]}
        with cpu.flags(allow_fft=False):
            this = _C.plan(op, dtype, **shape, kernel_size=kernel_size, stride=stride)
        assert this["scratch_bytes"] + this["partial_bytes"] + this["packed_bytes"] <= 4 << 20


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dilation", [2, 128, 512, 2000, 4000])
@pytest.mark.parametrize("op", OPS)
def test_memory_is_bounded_with_many_channels_and_a_dilation(op: str, dilation: int, dtype: str) -> None:
    for channels in (64, 256, 512, 1024):
        shape = {"batch": 1, "in_channels": channels, "in_length": 10_000, "out_channels": channels}
        this = _C.plan(op, dtype, **shape, kernel_size=3, dilation=dilation)
        assert this["scratch_bytes"] + this["partial_bytes"] + this["packed_bytes"] <= 4 << 20


@pytest.mark.parametrize("in_length", [70_000, 100_000, 65_100])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("op", OPS[:2])
def test_order_of_sums_does_not_depend_on_the_batch(op: str, kind: str, in_length: int) -> None:
    plans = [plan(op, kind, batch=batch, in_length=in_length) for batch in (1, 2, 64, 10_000)]
    for field in ("algorithm", "tap_block", "part_channels"):
        assert len({this[field] for this in plans}) == 1
    in_channels, out_channels, _, geometry = LAYERS[kind]
    channels = (out_channels if op == "conv1d_backward_input" else in_channels) // geometry.get("groups", 1)
    for this in plans:  # blocks are whole parts of the sums, so they don't change them; columns' blocks are not of sums
        whole_parts = this["channel_block"] == channels or this["channel_block"] % this["part_channels"] == 0
        assert whole_parts or this["algorithm"] == "columns"


@pytest.mark.parametrize("in_length", [577, 1000, 2000, 5000, 11_008])
def test_blocks_are_balanced(in_length: int) -> None:
    """All of them within a tile (of 48 positions at most) of the mean: 3 x 336 rather than 384 + 384 + 240."""
    shape = {"batch": 1, "in_channels": 64, "out_channels": 64, "kernel_size": 1}
    block = _C.plan("conv1d", "float32", **shape, in_length=in_length)["position_block"]
    assert block - in_length / math.ceil(in_length / block) < 48


def test_short_outputs_are_laid_out_as_columns() -> None:
    def algorithm(channels: int, out_length: int, dtype: str = "float32") -> str:
        shape = {"batch": 1, "in_channels": channels, "out_channels": channels, "kernel_size": 3}
        return _C.plan("conv1d", dtype, **shape, in_length=out_length + 2)["algorithm"]

    assert algorithm(512, 1) == "columns"
    assert algorithm(512, 8) == "panel"  # half a vector, for batches
    assert algorithm(1024, 8) == "columns"  # sums long enough
    assert algorithm(1024, 16) == "panel"  # no lanes would be idle
    assert algorithm(1024, 21) == "panel"
    assert algorithm(2048, 21) == "columns"  # the weights come from memory
    assert algorithm(1024, 21, "bfloat16") == "columns"  # not widened and packed
    assert algorithm(1024, 398, "bfloat16") == "panel"


def test_items_side_by_side_share_the_zeros_between_them() -> None:
    shape = {"batch": 64, "in_channels": 64, "out_channels": 64, "kernel_size": 5, "in_length": 16}
    shape |= {"padding_left": 2, "padding_right": 2}
    items = {m: _C.plan("conv1d", "float32", **shape, padding_mode=m)["batch_block"] for m in ("zeros", "reflect")}
    assert items["zeros"] > items["reflect"]


def test_input_gradients_of_few_positions_are_laid_out_as_columns() -> None:
    def algorithm(channels: int, in_length: int, dtype: str = "float32", **geometry: int) -> str:
        shape = {
            "batch": 1,
            "in_channels": channels,
            "out_channels": channels,
            "kernel_size": 3,
            "in_length": in_length,
        }
        return _C.plan("conv1d_backward_input", dtype, **shape, **geometry)["algorithm"]

    assert algorithm(64, 52) == "panel"  # items of a batch side by side
    assert algorithm(96, 52) == "columns"
    assert algorithm(2048, 21) == "columns"
    assert algorithm(2048, 64) == "columns"  # no lanes would be wasted, but the weights are many
    assert algorithm(2048, 300) == "panel"
    assert algorithm(2048, 300, stride=2) == "columns"  # 149 outputs
    assert algorithm(64, 320) == "panel"
    assert algorithm(64, 66) == "panel"  # 64 outputs: four vectors
    assert algorithm(256, 66) == "columns"  # more weights, which a panel would pack for few uses
    assert algorithm(64, 66, "bfloat16") == "columns"  # no weights are widened for a single use
    assert algorithm(32, 21) == "panel"  # adding up the columns would take too long


def test_input_gradients_of_few_channels_are_computed_for_all_taps_at_once() -> None:
    def algorithm(in_channels: int, dtype: str = "float32", **geometry: int) -> str:
        shape = {"batch": 1, "in_channels": in_channels, "in_length": 4000, "out_channels": 64, "kernel_size": 5}
        return _C.plan("conv1d_backward_input", dtype, **shape | geometry)["algorithm"]

    assert algorithm(1) == "taps"
    assert algorithm(1, stride=2) == "taps"
    assert algorithm(1, "bfloat16") == "panel"  # what is widened is copied
    assert algorithm(8) == "panel"  # enough rows
    assert algorithm(1, out_channels=4) == "panel"  # adding the rows up would take too long
    assert algorithm(1, kernel_size=33) == "panel"
    assert algorithm(1, dilation=100) == "panel"  # blocks would have too much in common
    assert algorithm(1, kernel_size=2, stride=100) != "taps"  # and be long


def test_input_gradients_of_long_taps_over_large_strides_are_laid_out_as_columns() -> None:
    def plan(in_channels: int, stride: int) -> dict:
        shape = {"batch": 1, "in_channels": in_channels, "in_length": 64_000, "out_channels": 1025}
        return _C.plan("conv1d_backward_input", "float32", **shape, kernel_size=2048, stride=stride)

    assert plan(1, 512)["algorithm"] == "columns"
    assert plan(1, 512)["scratch_bytes"] < 1 << 20  # in blocks of positions
    assert plan(1, 4)["algorithm"] != "columns"
    assert plan(8, 512)["algorithm"] == "panel"


def test_weight_gradients_of_few_positions_are_computed_in_their_own_order() -> None:
    shape = {"in_channels": 512, "out_channels": 1024, "kernel_size": 3, "in_length": 20, "padding_left": 2}
    algorithms = [_C.plan("conv1d_backward_weight", "float32", batch=n, **shape)["algorithm"] for n in (1, 4, 16)]
    assert algorithms == ["columns", "columns", "panel"]

    def of_64_channels(positions: int, **geometry: int) -> str:
        shape = {"batch": 1, "in_channels": 64, "out_channels": 64, "kernel_size": 3, "in_length": positions + 2}
        return _C.plan("conv1d_backward_weight", "float32", **shape | geometry)["algorithm"]

    assert of_64_channels(64) == "columns"
    assert of_64_channels(65) == "panel"  # too few output channels to lay out columns for
    assert of_64_channels(60, dilation=2) == "panel"  # element by element
    assert of_64_channels(60, kernel_size=1) == "panel"
    assert of_64_channels(6, kernel_size=1) == "columns"


def test_order_of_sums_of_columns_does_not_depend_on_the_batch() -> None:
    shape = {"in_channels": 2048, "out_channels": 64, "kernel_size": 3, "in_length": 3}
    plans = [_C.plan("conv1d", "float32", batch=batch, **shape) for batch in (1, 2, 8)]
    assert {plan["algorithm"] for plan in plans} == {"columns"}
    assert len({plan["channel_block"] for plan in plans}) == 1


def test_weight_gradients_of_few_output_channels_are_dot_products() -> None:
    assert plan("conv1d_backward_weight", "front end")["algorithm"] == "dot"
    assert plan("conv1d_backward_weight", "dense")["algorithm"] == "panel"


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("op", OPS)
def test_depthwise_layers_need_no_panel(op: str, stride: int) -> None:
    shape = {"batch": 1, "in_channels": 64, "out_channels": 64, "groups": 64, "kernel_size": 5, "in_length": 1000}
    assert _C.plan(op, "float32", **shape, stride=stride)["algorithm"] == "depthwise"


@pytest.mark.parametrize("op", OPS)
def test_many_phases_of_a_depthwise_layer_are_transposed_to_a_panel(op: str) -> None:
    shape = {"batch": 1, "in_channels": 64, "out_channels": 64, "groups": 64, "kernel_size": 32, "in_length": 1000}
    assert _C.plan(op, "float32", **shape, stride=16)["algorithm"] != "depthwise"


@pytest.mark.parametrize(("op", "stride", "most"), [("conv1d", 1, 2), ("conv1d", 2, 1), (OPS[2], 1, 4), (OPS[2], 2, 2)])
def test_few_output_channels_of_each_input_channel_are_taken_one_by_one(op: str, stride: int, most: int) -> None:
    shape = {"batch": 1, "in_channels": 64, "groups": 64, "kernel_size": 5, "in_length": 1000, "stride": stride}
    algorithms = [_C.plan(op, "float32", **shape, out_channels=64 * n)["algorithm"] for n in (most, most + 1)]
    assert algorithms[0] == "depthwise"
    assert algorithms[1] != "depthwise"


def test_few_channels_have_parts_of_the_sum_for_many_threads() -> None:
    shape = {"batch": 8, "in_channels": 2, "out_channels": 2, "groups": 2, "kernel_size": 3}
    assert _C.plan("conv1d_backward_weight", "float32", **shape, in_length=4000)["reduction_chunks"] == 8


def test_float_results_need_no_scratch_copy() -> None:
    assert plan("conv1d", "dense")["direct"]
    assert not plan("conv1d", "dense", "bfloat16")["direct"]


def test_rows_used_a_few_times_are_read_where_they_lie() -> None:
    pointwise = {"batch": 1, "in_channels": 48, "out_channels": 48, "kernel_size": 1}
    assert _C.plan("conv1d", "float32", **pointwise, in_length=16_000)["in_place"]
    assert _C.plan("conv1d_backward_input", "float64", **pointwise, in_length=16_000)["in_place"]
    assert not _C.plan("conv1d", "float32", **pointwise, in_length=16_000, stride=2)["in_place"]
    assert not _C.plan("conv1d", "bfloat16", **pointwise, in_length=16_000)["in_place"]
    assert not plan("conv1d", "many channels")["in_place"]


def test_pointwise_layers_of_few_rows_read_few_channels_at_a_time_wherever_they_lie() -> None:
    shape = {"batch": 1, "in_channels": 512, "kernel_size": 1, "in_length": 16_384}
    for rows, streams in ((1, True), (4, True), (9, False)):  # tiles have 4 to 8 rows
        chosen = _C.plan("conv1d", "float32", **shape, out_channels=rows)
        assert (chosen["in_place"], chosen["part_channels"] <= 32) == (streams, streams)


def test_few_rows_are_read_where_they_lie_for_input_gradients_of_strides() -> None:
    shape = {"batch": 1, "in_channels": 2, "kernel_size": 8, "stride": 4, "in_length": 40_000}
    assert _C.plan("conv1d_backward_input", "float32", **shape, out_channels=48)["in_place"]
    assert not _C.plan("conv1d_backward_input", "float32", **shape, out_channels=512)["in_place"]


def test_rows_that_share_cache_sets_are_copied() -> None:
    shape = {"batch": 1, "in_channels": 512, "out_channels": 48, "kernel_size": 1}
    assert _C.plan("conv1d", "float32", **shape, in_length=16_380)["in_place"]
    assert not _C.plan("conv1d", "float32", **shape, in_length=16_384)["in_place"]


@pytest.mark.parametrize("op", OPS[:2])
def test_large_weights_of_a_batch_of_short_sequences_are_packed_in_passes(op: str) -> None:
    shape = {"in_channels": 768, "out_channels": 768, "kernel_size": 3, "in_length": 240}
    batch, single = (_C.plan(op, "float32", batch=n, **shape) for n in (8, 1))
    assert batch["pack_weight"] == "all"
    assert batch["packed_bytes"] <= 5 << 19
    assert 96 / 4 <= batch["pass_tiles"] < 96  # of 96 tiles
    assert single["pack_weight"] == "tiles"


def test_short_sequences_share_a_panel() -> None:
    shape = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "in_length": 20}
    assert _C.plan("conv1d", "float32", batch=100, **shape)["batch_block"] > 1


@pytest.mark.parametrize("op", OPS[:2])
def test_sequences_that_fill_a_tile_share_a_panel_where_vectors_would_be_idle(op: str) -> None:
    def items(length: int, **layer: int) -> int:
        shape = {"batch": 16, "in_channels": 64, "out_channels": 64, "kernel_size": 3, "in_length": length}
        return _C.plan(op, "float32", **{"padding_left": 1, "padding_right": 1} | shape | layer)["batch_block"]

    assert items(50) > 1
    assert items(50, batch=1) == 1
    assert items(50, batch=5) == 3  # 3 and 2, not 4 and 1
    assert items(96) == 1  # whole vectors
    assert items(1000) == 1


def test_few_rows_are_read_where_they_lie() -> None:
    def in_place(channels: int, length: int, kernel_size: int) -> bool:
        shape = {"batch": 1, "in_channels": channels, "out_channels": channels, "in_length": length}
        return _C.plan("conv1d", "float32", **shape, kernel_size=kernel_size)["in_place"]

    assert in_place(16, 1000, 3)
    assert in_place(64, 16_000, 3)  # 24 uses: on Intel's wide cores because the rows are few and long
    assert not in_place(1024, 16_000, 3)


def test_sequences_that_are_read_where_they_lie_share_no_panel() -> None:
    shape = {"batch": 16, "in_channels": 64, "out_channels": 32, "kernel_size": 1}
    plan = _C.plan("conv1d", "float32", **shape, in_length=65)
    assert plan["in_place"]
    assert plan["batch_block"] == 1
    assert _C.plan("conv1d", "float32", **shape, in_length=130, stride=2)["batch_block"] > 1


def test_rejects_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown operator 'conv2d'"):
        plan("conv2d", "dense")
    with pytest.raises(ValueError, match="no kernels for dtype 'int8'"):
        plan("conv1d", "dense", "int8")
