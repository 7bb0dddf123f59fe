"""torch.func on the operators: derivatives in every nesting, and vmap, which folds and never loops."""

from itertools import product

import pytest
import torch
from cases import Case, make_operands
from reference import torch_conv1d
from torch import func
from torch.utils._python_dispatch import TorchDispatchMode

import conv1d_ext._ops  # noqa: F401  defines the operators

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.conv1d_ext
CASE = Case(2, 2, 5, 4, 3, stride=2, padding=(2, 1), groups=2, padding_mode="circular")
ALL = (0, 1, 2)


def transforms(convolve, dtype):
    """The names of transforms, with functions that apply them to a scalar or tensor function of the operands."""
    operands = make_operands(CASE, dtype)[:3]
    tangents = tuple(t.cos() for t in operands)

    def output(*operands):
        return convolve(*operands, **CASE.geometry)

    def loss(*operands):
        return output(*operands).abs().pow(3).sum()

    def along_tangents(function):
        return lambda *operands: func.jvp(function, operands, tangents)[1]

    return {
        "grad": lambda: func.grad(loss, ALL)(*operands),
        "vjp": lambda: func.vjp(output, *operands)[1](output(*operands)),
        "jvp": lambda: func.jvp(output, operands, tangents),
        "jacrev": lambda: func.jacrev(output, ALL)(*operands),
        "jacfwd": lambda: func.jacfwd(output, ALL)(*operands),
        "jacfwd of jacfwd": lambda: func.jacfwd(func.jacfwd(output, 0), 1)(*operands),
        "jacrev of jacfwd": lambda: func.jacrev(func.jacfwd(output, 1), 0)(*operands),
        "jacfwd of jacrev": lambda: func.jacfwd(func.jacrev(output, 1), 0)(*operands),
        "hessian": lambda: func.hessian(loss, ALL)(*operands),
        "jvp of grad": lambda: along_tangents(func.grad(loss, ALL))(*operands),
        "grad of jvp": lambda: func.grad(along_tangents(loss), ALL)(*operands),
        "jvp of jvp": lambda: along_tangents(along_tangents(loss))(*operands),
        "grad of grad": lambda: func.grad(lambda *o: func.grad(loss)(*o).abs().square().sum(), ALL)(*operands),
        "jvp of jvp of grad": lambda: along_tangents(along_tangents(func.grad(loss, ALL)))(*operands),
        "functionalize": lambda: func.functionalize(func.grad(loss, ALL))(*operands),
    }


# torch.func has no complex jacobians.
REAL_AND_COMPLEX = [
    (name, dtype)
    for name, dtype in product(transforms(ops.conv1d, torch.float64), [torch.float64, torch.complex128])
    if not (dtype.is_complex and ("jac" in name or name == "hessian"))
]


@pytest.mark.parametrize(("name", "dtype"), REAL_AND_COMPLEX, ids=str)
def test_transforms_match_torch(name, dtype):
    torch.testing.assert_close(transforms(ops.conv1d, dtype)[name](), transforms(torch_conv1d, dtype)[name]())


def functions(case: Case) -> dict:
    """The operators as functions of tensors alone, and the tensors."""
    input, weight, bias, grad_output = make_operands(case, torch.float64)
    return {
        "conv1d": (lambda x, w, b: ops.conv1d(x, w, b, **case.geometry), (input, weight, bias)),
        "conv1d without bias": (lambda x, w: ops.conv1d(x, w, **case.geometry), (input, weight)),
        "conv1d_backward_input": (
            lambda g, w: ops.conv1d_backward_input(g, w, case.in_length, **case.geometry),
            (grad_output, weight),
        ),
        "conv1d_backward_weight": (
            lambda g, x: ops.conv1d_backward_weight(g, x, case.kernel_size, **case.geometry),
            (grad_output, input),
        ),
        "conv1d_backward_bias": (ops.conv1d_backward_bias, (grad_output,)),
    }


def batches(operands, in_dims, size=3):
    """Variations of the operands, stacked along each one's `in_dims`."""
    return tuple(
        operand if dim is None else torch.stack([operand + i for i in range(size)], dim)
        for operand, dim in zip(operands, in_dims, strict=True)
    )


def looped(function, operands, in_dims, size=3):
    def item(operand, dim, i):
        return operand if dim is None else operand.select(dim, i)

    return torch.stack([function(*map(item, operands, in_dims, [i] * len(operands))) for i in range(size)])


class CallCounter(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function.namespace == "conv1d_ext"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("op", functions(CASE))
def test_vmap_matches_a_loop_and_makes_one_call(op, groups):
    function, operands = functions(Case(2, 4, 9, 6, 3, stride=2, padding=(1, 2), groups=groups))[op]
    for in_dims in product(*([None, *range(operand.dim() + 1)] for operand in operands)):
        if all(dim is None for dim in in_dims):
            continue
        stacked = batches(operands, in_dims)
        with CallCounter() as counter:
            result = func.vmap(function, in_dims)(*stacked)
        assert counter.calls == 1
        torch.testing.assert_close(result, looped(function, stacked, in_dims))


@pytest.mark.parametrize("out_dim", range(4))
def test_vmap_puts_the_new_dimension_where_out_dims_says(out_dim):
    function, operands = functions(CASE)["conv1d"]
    in_dims = (2, 1, 0)
    stacked = batches(operands, in_dims)
    result = func.vmap(function, in_dims, out_dim)(*stacked)
    torch.testing.assert_close(result, looped(function, stacked, in_dims).movedim(0, out_dim))


@pytest.mark.parametrize("inner", [(0, None, None), (None, 0, None), (0, 0, None), (None, None, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("outer", [(0, None, None), (None, 0, 0), (0, 0, 0)], ids=str)
def test_nested_vmap_matches_nested_loops(inner, outer):
    function, operands = functions(CASE)["conv1d"]
    stacked = batches(batches(operands, inner, size=2), outer)
    result = func.vmap(func.vmap(function, inner), outer)(*stacked)
    torch.testing.assert_close(result, looped(lambda *t: looped(function, t, inner, size=2), stacked, outer))


def test_derivatives_of_vmap_match_torch():
    def results(convolve):
        _, operands = functions(CASE)["conv1d"]
        stacked = batches(operands, (2, 1, 0))
        ensemble = func.vmap(lambda *operands: convolve(*operands, **CASE.geometry).sin().sum(), (2, 1, 0))
        return func.grad(lambda *o: ensemble(*o).sum(), ALL)(*stacked), func.jvp(ensemble, stacked, stacked)

    torch.testing.assert_close(results(ops.conv1d), results(torch_conv1d))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(make_operands(CASE, torch.float64).weight)
        self.bias = torch.nn.Parameter(make_operands(CASE, torch.float64).bias)

    def forward(self, input):
        return ops.conv1d(input, self.weight, self.bias, **CASE.geometry).tanh()


def test_per_sample_gradients_match_a_loop():
    net, inputs = Net(), torch.stack([make_operands(CASE, torch.float64).input + i for i in range(3)])

    def loss(parameters, input):
        return func.functional_call(net, parameters, (input,)).square().sum()

    parameters = dict(net.named_parameters())
    with CallCounter() as counter:
        grads = func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, inputs)
    assert counter.calls == 3  # forward, weight, bias: nobody asks for the gradient of the input
    for i, input in enumerate(inputs):
        torch.testing.assert_close({name: g[i] for name, g in grads.items()}, func.grad(loss)(parameters, input))


def test_an_ensemble_of_models_matches_a_loop():
    nets = [Net() for _ in range(3)]
    for i, net in enumerate(nets):
        net.weight.data += i
    parameters, _ = func.stack_module_state(nets)
    input = make_operands(CASE, torch.float64).input
    result = func.vmap(lambda p: func.functional_call(nets[0], p, (input,)))(parameters)
    torch.testing.assert_close(result, torch.stack([net(input) for net in nets]))
