"""explain: what it says of a layer agrees with what happens."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import conv1d_ext
from conv1d_ext import _C

DENSE = "amx" if _C.isa() == "amx" else "toom-cook"


def explained(capsys: pytest.CaptureFixture, layer: torch.nn.Conv1d, shape: list[int]) -> dict[str, list[str]]:
    """The words of each line, by the first."""
    conv1d_ext.explain(layer, shape)
    lines = capsys.readouterr().out.splitlines()
    return {words[0]: words[1:] for words in map(str.split, lines) if words}


def test_counts_the_operations_that_torch_counts(capsys: pytest.CaptureFixture) -> None:
    layer = conv1d_ext.Conv1d(64, 128, 5, stride=2, padding=3, groups=2)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(4, 64, 1000))
    megaflops = f"{counter.get_total_flops() / 1e6:,.1f}"
    assert explained(capsys, layer, [4, 64, 1000])["MFLOP"] == [megaflops] * 3


@pytest.mark.parametrize(
    ("layer", "algorithms"),
    [
        (torch.nn.Conv1d(256, 256, 3, padding="same"), [DENSE, DENSE, DENSE]),
        (torch.nn.Conv1d(256, 256, 4, padding=3, groups=256), ["depthwise", "depthwise", "depthwise"]),
        (torch.nn.Conv1d(64, 64, 4, padding=3, groups=64, padding_mode="reflect"), ["depthwise", "panel", "depthwise"]),
        (torch.nn.Conv1d(256, 256, 3, dtype=torch.complex64), ["panel", "panel", "panel"]),
    ],
    ids=["dense", "depthwise", "padding mode", "complex"],
)
def test_names_the_algorithms(layer: torch.nn.Conv1d, algorithms: list[str], capsys: pytest.CaptureFixture) -> None:
    assert explained(capsys, layer, [layer.in_channels, 4000])["algorithm"] == algorithms


def test_says_what_torch_computes_and_why(capsys: pytest.CaptureFixture) -> None:
    conv1d_ext.explain(conv1d_ext.Conv1d(3, 4, 2, device="meta"), (1, 3, 10))
    assert "computed by torch's own conv1d: there are no kernels for meta" in capsys.readouterr().out


def test_takes_negative_padding_for_cropping(capsys: pytest.CaptureFixture) -> None:
    cropping = conv1d_ext.Conv1d(3, 4, 2, padding=-2, padding_mode="circular")
    cropped = conv1d_ext.Conv1d(3, 4, 2)
    assert explained(capsys, cropping, [1, 3, 50])["MFLOP"] == explained(capsys, cropped, [1, 3, 46])["MFLOP"]


@pytest.mark.parametrize("shape", [(1, 5, 10), (3,), (1, 3, 1), (0, 3, 10)])
def test_refuses_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an input of shape|too short|nothing to compute"):
        conv1d_ext.explain(conv1d_ext.Conv1d(3, 4, 2), shape)
