"""The engines: all that can compute a layer. Each is a function of an index that says on which operands to compute.

Those which are no part of torch run forward, in float32, on the CPU alone: operands bound without a copy, and one
output that each call writes to. torch and conv1d_ext allocate theirs in each call, as they do for their users;
`--memory reused` makes that equal.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import conv1d_ext

Engine = Callable[[int], Any]

OURS = "conv1d_ext"
# conv1d_ext with other switches than it has by default.
VARIANTS = {
    "direct": {"allow_fft": False, "allow_toom_cook": False, "allow_amx": False},
    "reduced-precision": {"allow_reduced_precision": True},
}
PEERS = ("torch", *VARIANTS, "torch.compile", "onnxruntime", "openvino")
_NEEDS = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def has_own_threads(peer: str) -> bool:
    """Whether the peer's threads are not those of torch and conv1d_ext."""
    return peer in _NEEDS


def missing_packages(peer: str) -> list[str]:
    return [package for package in _NEEDS.get(peer, ()) if importlib.util.find_spec(package) is None]


def supports(peer: str, mode: str, dtype: torch.dtype, device: str) -> bool:
    if peer == "torch" or peer in VARIANTS:
        return peer == "torch" or device == "cpu"  # the switches are the CPU's
    return mode == "forward" and (not has_own_threads(peer) or (dtype == torch.float32 and device == "cpu"))


def variant(peer: str, engine: Engine) -> Engine:
    """The engine, with the switches of a variant."""

    def run(i: int) -> Any:
        with conv1d_ext.backends.cpu.flags(**VARIANTS[peer]):
            return engine(i)

    return run


def forward(module: nn.Conv1d, inputs: Sequence[Tensor]) -> Engine:
    return lambda i: (module(inputs[i]),)


def training(module: nn.Conv1d, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Engine:
    """Output, and the gradients of input and parameters."""

    def step(i: int) -> tuple[Tensor, ...]:
        output = module(inputs[i])
        return output, *torch.autograd.grad(output, (inputs[i], *module.parameters()), cotangents[i % len(cotangents)])

    return step


def peer_forward(peer: str, module: nn.Conv1d, inputs: Sequence[Tensor], threads: int) -> Engine:
    """`module` as the peer computes it. Raises what the peer raises where it cannot."""
    if peer == "torch":
        return forward(module, inputs)
    make = {"torch.compile": _compiled, "onnxruntime": _onnxruntime, "openvino": _openvino}[peer]
    return make(module, inputs, threads)


def _compiled(module: nn.Conv1d, inputs: Sequence[Tensor], _: int) -> Engine:
    torch.compiler.reset()  # or the many layers would count as one module that is recompiled too often
    return forward(torch.compile(module, dynamic=False), inputs)


def _onnxruntime(module: nn.Conv1d, inputs: Sequence[Tensor], threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads spin on for longer than SETTLE_SECONDS, and slow down what is measured next, up to six times.
    # Waking them takes up to some 20 us a call, which is in its disfavour where layers are small.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_onnx_model(module, inputs[0]), options, providers=["CPUExecutionProvider"])
    output = np.empty_like(module(inputs[0]).numpy(force=True))
    bindings = [session.io_binding() for _ in inputs]
    for binding, input in zip(bindings, inputs, strict=True):
        binding.bind_cpu_input("input", input.numpy())
        binding.bind_output("output", "cpu", 0, output.dtype, output.shape, output.ctypes.data)

    def run(i: int) -> np.ndarray:
        session.run_with_iobinding(bindings[i])
        return output

    return run


def _openvino(module: nn.Conv1d, inputs: Sequence[Tensor], threads: int) -> Engine:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(_onnx_model(module, inputs[0])), "CPU", options).create_infer_request()
    tensors = [openvino.Tensor(input.numpy(), shared_memory=True) for input in inputs]

    def infer(i: int) -> np.ndarray:
        request.set_input_tensor(tensors[i])
        request.infer()
        return request.get_output_tensor().data

    return infer


def _onnx_model(module: nn.Conv1d, input: Tensor) -> bytes:
    """By hand, because torch.onnx.export takes seconds for each layer."""
    from onnx import TensorProto, helper, numpy_helper

    left, right = module._reversed_padding_repeated_twice  # whatever form the padding was given in
    parameters = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    geometry = {"strides": module.stride, "dilations": module.dilation, "group": module.groups}
    if module.padding_mode == "zeros":
        nodes = [helper.make_node("Conv", ["input", *parameters], ["output"], pads=[left, right], **geometry)]
        constants = parameters
    else:
        mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[module.padding_mode]
        nodes = [
            helper.make_node("Pad", ["input", "pads"], ["padded"], mode=mode),
            helper.make_node("Conv", ["padded", *parameters], ["output"], **geometry),
        ]
        constants = parameters | {"pads": np.array([0, 0, left, 0, 0, right])}
    graph = helper.make_graph(
        nodes,
        "conv1d",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, input.shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
