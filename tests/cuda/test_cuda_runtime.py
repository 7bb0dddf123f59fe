"""How calls behave on a GPU: streams, graphs, devices, memory, determinism; nothing waits, nothing leaks."""

import pytest
import reference
import torch
from cases import CASES, Case, Operands, make_operands
from gpu import DEVICE, on_gpu
from test_kernels import OPS, run_all

import conv1d_ext

CASE = Case(4, 64, 2000, 64, 5, padding=(2, 2))
DEPTHWISE = Case(4, 64, 2000, 64, 9, padding=(4, 4), groups=64, padding_mode="reflect")


def gpu_operands(case: Case, dtype: torch.dtype = torch.float32) -> Operands:
    return on_gpu(make_operands(case, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("case", [*CASES[::3], CASE, DEPTHWISE], ids=str)
def test_results_are_equal_to_the_bit_from_call_to_call(case: Case, dtype: torch.dtype) -> None:
    operands = gpu_operands(case, dtype)
    first = run_all(OPS, case, operands)
    for _ in range(5):
        torch.empty(1 << 24, device=DEVICE).fill_(torch.nan)  # what the next call's memory may hold
        again = run_all(OPS, case, operands)
        assert [op for op in first if not torch.equal(first[op], again[op])] == []


def test_an_item_is_equal_to_the_bit_wherever_in_a_batch_it_lies() -> None:
    x, w, b, grad = gpu_operands(CASE)
    output, grad_input = OPS.conv1d(x, w, b, **CASE.geometry), OPS.conv1d_backward_input(grad, w, 2000, **CASE.geometry)
    for n in range(4):
        assert torch.equal(OPS.conv1d(x[n : n + 1], w, b, **CASE.geometry), output[n : n + 1])
        item = OPS.conv1d_backward_input(grad[n : n + 1], w, 2000, **CASE.geometry)
        assert torch.equal(item, grad_input[n : n + 1])


@pytest.mark.parametrize("case", [CASE, DEPTHWISE], ids=str)
def test_runs_on_the_current_stream(case: Case) -> None:
    """The operands are made late on a side stream: a call on another stream would read what was there before."""
    operands = gpu_operands(case)
    expected = run_all(OPS, case, operands)
    late = Operands(*map(torch.zeros_like, operands))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for to, source in zip(late, operands, strict=True):
            to.copy_(source)
        actual = run_all(OPS, case, late)
        assert not stream.query(), "the call has waited"
    stream.synchronize()
    assert [op for op in expected if not torch.equal(actual[op], expected[op])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("case", [CASE, DEPTHWISE], ids=str)
def test_a_graph_captures_and_replays_the_calls(case: Case, dtype: torch.dtype) -> None:
    operands = gpu_operands(case, dtype)
    run_all(OPS, case, operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run_all(OPS, case, operands)
    for seed in range(3):
        torch.manual_seed(seed)
        for operand in operands:
            operand.copy_(torch.randn_like(operand))
        graph.replay()
        expected = run_all(OPS, case, operands)
        assert [op for op in expected if not torch.equal(results[op], expected[op])] == []


def test_a_module_trains_in_a_graph() -> None:
    layer = conv1d_ext.Conv1d(32, 32, 3, padding=1, device=DEVICE)
    graphed = torch.cuda.make_graphed_callables(layer, (torch.randn(2, 32, 100, device=DEVICE, requires_grad=True),))
    x = torch.randn(2, 32, 100, device=DEVICE, requires_grad=True)
    graphed(x).square().sum().backward()
    grads = x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()
    x.grad = None
    plain = conv1d_ext.Conv1d(32, 32, 3, padding=1, device=DEVICE)
    plain.load_state_dict(layer.state_dict())
    plain(x).square().sum().backward()
    for actual, expected in zip(grads, (x.grad, plain.weight.grad, plain.bias.grad), strict=True):
        torch.testing.assert_close(actual, expected)


def test_nothing_synchronises() -> None:
    before = torch.cuda.get_sync_debug_mode()
    operands, complex_operands = gpu_operands(CASE), gpu_operands(DEPTHWISE, torch.complex64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_all(OPS, CASE, operands)
        run_all(OPS, DEPTHWISE, complex_operands)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_computes_on_the_device_of_the_operands() -> None:
    operands = Operands(*(t.to("cuda:1") for t in make_operands(CASE)))
    with torch.cuda.device(0):
        results = run_all(OPS, CASE, operands)
        assert torch.cuda.current_device() == 0
    expected = run_all(reference, CASE, make_operands(CASE))
    for op, actual in results.items():
        assert actual.device == torch.device("cuda:1")
        reference.assert_op_matches(op, CASE, actual.cpu(), expected[op])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_operands_on_two_gpus_give_torchs_error() -> None:
    x, w = torch.randn(1, 4, 9, device="cuda:0"), torch.randn(4, 4, 3, device="cuda:1")
    with pytest.raises(RuntimeError, match="same device"):
        OPS.conv1d(x, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [Case(8, 256, 20_000, 256, 3, padding=(1, 1)), DEPTHWISE], ids=str)
def test_memory_beyond_the_results_is_bounded(case: Case, dtype: torch.dtype) -> None:
    operands = gpu_operands(case, dtype)
    run_all(OPS, case, operands)
    x, w, bias, grad = operands
    calls = [
        lambda: OPS.conv1d(x, w, bias, **case.geometry),
        lambda: OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry),
        lambda: OPS.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry),
        lambda: OPS.conv1d_backward_bias(grad),
    ]
    for call in calls:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        # Partial sums of weight gradients, operands unfolded or transposed: no more than the operands themselves.
        extra = torch.cuda.max_memory_allocated() - before - result.nbytes
        assert extra <= sum(t.nbytes for t in (x, w, grad)) + (16 << 20)
        del result
        assert torch.cuda.memory_allocated() == before


def test_nothing_is_left_after_training() -> None:
    layer = conv1d_ext.Conv1d(16, 16, 3, padding=1, device=DEVICE)

    def step(length: int) -> None:
        layer(torch.randn(2, 16, length, device=DEVICE, requires_grad=True)).sum().backward()
        layer.zero_grad()

    step(100)
    before = torch.cuda.memory_allocated()
    for length in range(1, 300):
        step(length)
    assert torch.cuda.memory_allocated() == before


def test_works_where_offsets_exceed_32_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GB of free memory")
    length = (1 << 29) + 1000
    x = torch.zeros(1, 5, length, dtype=torch.bfloat16, device=DEVICE)
    x[0, -1, -3:] = torch.tensor([1.0, 2.0, 3.0])
    output = OPS.conv1d(x, torch.ones(1, 5, 3, dtype=torch.bfloat16, device=DEVICE))
    assert output.shape[2] == length - 2
    assert output[0, 0, -4:].tolist() == [0.0, 1.0, 3.0, 6.0]


def test_more_rows_than_a_grid_has_in_y() -> None:
    """65535 is the most that the other dimensions of a grid have."""
    case = Case(70_000, 2, 9, 2, 3, groups=2)
    operands = gpu_operands(case)
    expected = reference.conv1d(*make_operands(case)[:3], **case.geometry)
    reference.assert_matches(OPS.conv1d(*operands[:3], **case.geometry).cpu(), expected, case.terms("conv1d"))
