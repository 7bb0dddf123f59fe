"""Random calls in random layouts against torch: the corpus, and some examples drawn anew, the same ones each time."""

import fuzz
import pytest
from fuzz_corpus import CORPUS

pytestmark = pytest.mark.usefixtures("one_thread")

# Those that every few hundred examples reach.
PLANS = [
    "conv1d, columns, blocks of channels",
    "conv1d, depthwise",
    "conv1d_backward_input, depthwise",
    "conv1d_backward_weight, depthwise, parts of the sum",
    *(f"{op}, depthwise, phases" for op in ("conv1d", "conv1d_backward_input", "conv1d_backward_weight")),
    "conv1d_backward_weight, dot, parts of the sum",
    "conv1d_backward_weight, panel, several items",
    *(
        f"{op}, {algorithm}, {split}"
        for op, algorithm in (
            ("conv1d", "panel"),
            ("conv1d_backward_input", "panel"),
            ("conv1d_backward_weight", "panel"),
            ("conv1d_backward_weight", "dot"),
        )
        for split in ("phases", "blocks of positions", "blocks of channels", "blocks of taps")
    ),
    *(
        f"{op}, panel, {split}"
        for op in ("conv1d", "conv1d_backward_input")
        for split in ("several items", "all weights packed", "tiles of weights packed")
    ),
]


@pytest.mark.parametrize("example", CORPUS, ids=range(len(CORPUS)))
def test_matches_torch_where_it_did_not(example: fuzz.Example) -> None:
    fuzz.check(example)


def test_matches_torch() -> None:
    reached = list(fuzz.run(200))[-1]
    assert reached["examples"] >= 200


@pytest.mark.long
def test_matches_torch_through_every_plan() -> None:
    reached = list(fuzz.run(4000, first_seed=1000))[-1]
    assert not [plan for plan in PLANS if not reached[plan]]
    assert reached["refused"] < 0.2 * reached["examples"]
