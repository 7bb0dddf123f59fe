// conv1d_ext._C: the eager entry points, the choice of instruction set, and what this binary was built with.
//
// The entry points take torch.conv1d's arguments through torch's own argument parser, so the forms accepted, the
// exception types and the messages are torch's, at a fraction of what the same work costs in Python. Tracers that need
// Python, Dynamo and TorchScript, don't come here but call the operators (conv1d_ext/functional.py).
#define FMT_HEADER_ONLY  // python_arg_parser.h uses fmt, of which torch ships the headers alone
#define USE_NUMPY        // as in torch itself: without it the parser takes NumPy's integers for sequences
#include <ATen/ATen.h>
#include <c10/util/safe_numerics.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/pycfunction_helpers.h>
#include <torch/csrc/utils/python_arg_parser.h>
#include <torch/version.h>

#include <chrono>
#include <map>

#include "checks.h"
#include "conv1d.h"
#include "cpu/allowed.h"
#include "cpu/isa.h"
#include "cuda_switch.h"

namespace conv1d_ext {
namespace {

namespace py = pybind11;

py::object functional(const char* name) { return py::module_::import("conv1d_ext.functional").attr(name); }

// A Tensor subclass with handlers of its own (DTensor, quantised weights, masked tensors, ...) may know torch's conv1d,
// and nothing else: it shall see torch's. Plain tensors and parameters never get past the first test.
bool is_foreign(PyObject* operand) {
  return operand != nullptr && !THPVariable_CheckExact(operand) && THPVariable_Check(operand) &&
         functional("is_foreign")(py::handle(operand)).cast<bool>();
}

bool any_foreign(const torch::PythonArgs& parsed) {
  return is_foreign(parsed.args[0]) || is_foreign(parsed.args[1]) || is_foreign(parsed.args[2]);
}

// Of an input without channels torch makes an output without channels, whatever the weight says, and knows the
// gradients.
bool without_channels(torch::PythonArgs& parsed) {
  const at::Tensor input = parsed.tensor(0);
  return input.dim() >= 2 && input.sym_size(-2).maybe_as_int() == 0;
}

// Other objects with __torch_function__, and modes, see the function of conv1d_ext.functional that the user called.
PyObject* call_torch_function(torch::PythonArgs& parsed, PyObject* args, PyObject* kwargs, const char* name) {
  return torch::handle_torch_function_no_python_arg_parser(
      parsed.overloaded_args, args, kwargs, name, functional(name).ptr(), "conv1d_ext.functional");
}

// Not torch.conv1d, which patch_torch() replaces.
py::object torch_conv1d() { return py::module_::import("torch._C").attr("_VariableFunctions").attr("conv1d"); }

// An argument that is an integer or holds one.
c10::SymInt single(torch::PythonArgs& parsed, int i) {
  PyObject* arg = parsed.args[i];
  if (arg != nullptr && PyTuple_CheckExact(arg) && PyTuple_GET_SIZE(arg) == 1) arg = PyTuple_GET_ITEM(arg, 0);
  // Mostly so; torch's parser would fill a vector, which costs as much as all its other work here.
  if (arg != nullptr && PyLong_CheckExact(arg)) return THPUtils_unpackLong(arg);
  const auto values = parsed.symintlist(i);
  const std::string& name = parsed.signature.params[i].name;
  TORCH_CHECK(
      values.size() == 1, "expected ", name, " to be a single integer value or a list of 1 values to match the ",
      "convolution dimensions, but got ", name, "=", c10::SymIntArrayRef(values));
  return values[0];
}

// padding='same' keeps the length; of an odd total the larger half goes to the right, as in torch.
void pad_to_same_length(const at::Tensor& weight, SymGeometry* geometry) {
  TORCH_CHECK(geometry->stride == 1, "padding='same' is not supported for strided convolutions");
  if (weight.dim() != 3) return;  // the operator's to refuse
  const c10::SymInt taps = weight.sym_size(2) - 1;
  if (auto d = geometry->dilation.maybe_as_int(), t = taps.maybe_as_int(); d && t) {
    int64_t total;
    TORCH_CHECK(!c10::mul_overflows(*d, *t, &total), "dilation is too large: ", *d);
  }
  const c10::SymInt total = geometry->dilation * taps;
  geometry->padding_left = total / 2;
  geometry->padding_right = total - geometry->padding_left;
}

// torch.jit.trace records what is called through Python.
at::Tensor traced_conv1d(
    const SymGeometry& g, const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return functional("traced_conv1d")(
             input, weight, bias, g.stride, py::make_tuple(g.padding_left, g.padding_right), g.dilation, g.groups,
             std::string(g.padding_mode))
      .cast<at::Tensor>();
}

PyObject* run(
    const SymGeometry& geometry,
    const at::Tensor& input,               // [N, C_in, L_in], or [C_in, L_in] and the same of the result
    const at::Tensor& weight,              // [C_out, C_in / groups, K]
    const std::optional<at::Tensor>& bias  // [C_out]
) {
  TORCH_CHECK(
      input.dim() == 2 || input.dim() == 3,
      "Expected 2D (unbatched) or 3D (batched) input to conv1d, but got input of size: ", input.sym_sizes());
  const auto convolve = [&](const at::Tensor& batched) {
    if (torch::jit::tracer::isTracing()) return traced_conv1d(geometry, batched, weight, bias);
    const py::gil_scoped_release no_gil;
    return conv1d(geometry, batched, weight, bias);
  };
  return THPVariable_Wrap(input.dim() == 2 ? convolve(input.unsqueeze(0)).squeeze(0) : convolve(input));
}

// torch.nn.functional.conv1d.
PyObject* conv1d_entry(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser({
      "conv1d(Tensor input, Tensor weight, Tensor? bias=None, SymIntArrayRef[1] stride=1, "
      "SymIntArrayRef[1] padding=0, SymIntArrayRef[1] dilation=1, SymInt groups=1)",
      "conv1d(Tensor input, Tensor weight, Tensor? bias=None, SymIntArrayRef[1] stride=1, "
      "std::string_view padding=\"valid\", SymIntArrayRef[1] dilation=1, SymInt groups=1)",
  });
  torch::ParsedArgs<7> storage;
  auto parsed = parser.parse(args, kwargs, storage);
  if (any_foreign(parsed)) return PyObject_Call(torch_conv1d().ptr(), args, kwargs);
  if (parsed.has_torch_function()) return call_torch_function(parsed, args, kwargs, "conv1d");
  if (without_channels(parsed)) return PyObject_Call(torch_conv1d().ptr(), args, kwargs);
  const at::Tensor weight = parsed.tensor(1);
  SymGeometry geometry{
      .stride = single(parsed, 3),
      .dilation = single(parsed, 5),
      .groups = parsed.toSymInt(6),
  };
  if (parsed.idx == 0) {
    geometry.padding_left = geometry.padding_right = single(parsed, 4);
  } else if (const std::string_view padding = parsed.stringView(4); padding == "same") {
    pad_to_same_length(weight, &geometry);
  } else {
    TORCH_CHECK(padding == "valid", "Invalid padding string: '", padding, "'");
  }
  return run(geometry, parsed.tensor(0), weight, parsed.optionalTensor(2));
  END_HANDLE_TH_ERRORS
}

// torch.nn.functional.pad and conv1d in one, without the padded copy; padding is (left, right).
PyObject* conv1d_padded_entry(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser({
      "conv1d_padded(Tensor input, Tensor weight, Tensor? bias, SymIntArrayRef[1] stride, SymIntArrayRef[2] padding, "
      "SymIntArrayRef[1] dilation, SymInt groups, std::string_view padding_mode)",
  });
  torch::ParsedArgs<8> storage;
  auto parsed = parser.parse(args, kwargs, storage);
  const auto pad_then_conv1d = [&] { return PyObject_Call(functional("pad_then_conv1d").ptr(), args, kwargs); };
  if (any_foreign(parsed)) return pad_then_conv1d();
  if (parsed.has_torch_function()) return call_torch_function(parsed, args, kwargs, "conv1d_padded");
  if (without_channels(parsed)) return pad_then_conv1d();
  const at::Tensor input = parsed.tensor(0);
  const auto padding = parsed.symintlist(4);
  TORCH_CHECK(padding.size() == 2, "expected padding to be (left, right), but got ", c10::SymIntArrayRef(padding));
  const bool crops = parsed.stringView(7) != "zeros" && (padding[0] < 0 || padding[1] < 0);
  if (crops || (input.dim() != 2 && input.dim() != 3)) return pad_then_conv1d();  // the latter for torch's error
  const SymGeometry geometry{
      .stride = single(parsed, 3),
      .padding_left = padding[0],
      .padding_right = padding[1],
      .dilation = single(parsed, 5),
      .groups = parsed.toSymInt(6),
      .padding_mode = parsed.stringView(7),
  };
  return run(geometry, input, parsed.tensor(1), parsed.optionalTensor(2));
  END_HANDLE_TH_ERRORS
}

// An instruction set that was not built stands for the portable kernels.
bool isa_built(Isa isa) { return isa == Isa::kPortable || &kernel_table(isa) != &kernel_table(Isa::kPortable); }

template <bool (*condition)(Isa)>
std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (Isa isa : kAllIsas) {
    if (condition(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

void use_isa(const std::string& name) {
  Isa isa;
  TORCH_CHECK_VALUE(parse_isa(name, &isa), "unknown instruction set '", name, "'");
  TORCH_CHECK_VALUE(set_isa(isa), "this CPU or build has no ", name);
}

constexpr const char* kUses[] = {"never", "where faster", "where possible"};  // Use
Use parse_use(const std::string& name) {
  for (const Use use : {Use::kNever, Use::kWhereFaster, Use::kWherePossible}) {
    if (name == kUses[int(use)]) return use;
  }
  TORCH_CHECK_VALUE(false, "expected never, where faster or where possible, but got '", name, "'");
}
template <Family family>
std::string chosen() {
  return kUses[int(chosen_use(family))];
}
template <Family family>
void choose(const std::string& name) {
  set_use(family, parse_use(name));
}

// conv1d_ext/_load.py reads this in the file, before it lets the loader have it.
[[gnu::used]] const char kBuiltFor[] = "conv1d_ext built for torch " TORCH_VERSION;

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["openmp"] = _OPENMP;
  info["isas"] = isas<isa_built>();
  info["cuda"] = cuda_kernels() ? cuda_kernels()->architectures : "";
  return info;
}

// None where torch's operator computes.
std::optional<std::string> cuda_arithmetic(at::ScalarType type, int capability, int64_t shared_bytes) {
  const char* name = cuda_kernels() ? cuda_kernels()->arithmetic(type, capability, shared_bytes) : nullptr;
  return name ? std::optional<std::string>(name) : std::nullopt;
}

// The plan of a problem with contiguous operands, by the names of problem.h and plan.h.
py::dict plan(
    const std::string& op_name, const std::string& dtype, int64_t batch, int64_t in_channels, int64_t in_length,
    int64_t out_channels, int64_t kernel_size, int64_t stride, int64_t padding_left, int64_t padding_right,
    int64_t dilation, int64_t groups, const std::string& padding_mode, bool accumulate) {
  const std::map<std::string, Op> ops{
      {"conv1d", Op::kForward},
      {"conv1d_backward_input", Op::kBackwardInput},
      {"conv1d_backward_weight", Op::kBackwardWeight}};
  const KernelTable& table = kernel_table();
  const std::map<std::string, const KernelSet*> kernels{
      {"float32", &table.float32},
      {"float64", &table.float64},
      {"bfloat16", &table.bfloat16},
      {"float16", &table.float16}};
  TORCH_CHECK_VALUE(ops.count(op_name), "unknown operator '", op_name, "'");
  TORCH_CHECK_VALUE(kernels.count(dtype), "no kernels for dtype '", dtype, "'");
  TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  const auto meta = at::TensorOptions().device(at::kMeta);
  const at::Tensor input = at::empty({}, meta).expand({batch, in_channels, in_length});  // of any size
  const at::Tensor weight = at::empty({}, meta).expand({out_channels, in_channels / groups, kernel_size});
  Conv1dProblem problem =
      check_conv1d({stride, padding_left, padding_right, dilation, groups, padding_mode}, input, weight, std::nullopt);
  TORCH_CHECK(input.numel() > 0, "expected some input, but got input of size ", input.sizes());
  problem.input = {in_channels * in_length, in_length, 1};
  problem.output = {out_channels * problem.out_length, problem.out_length, 1};
  problem.weight = {in_channels / groups * kernel_size, kernel_size, 1};
  problem.accumulate = accumulate;
  const TileShape& tile = dtype == "float64" ? table.tile_double : table.tile_float;
  const auto [family, plan, fft, toom_cook, amx] =
      make_plans(ops.at(op_name), problem, kernels.at(dtype)->sizes, tile, cache_sizes(), allowed_uses());
  py::dict fields;
  if (family == Family::kAmx) {
    fields["algorithm"] = "amx";
    fields["pieces"] = amx.pieces;
    fields["step_taps"] = amx.step_taps;
    fields["channel_steps"] = amx.channel_steps;
    fields["chunk_steps"] = amx.chunk_steps;
    fields["panel_phases"] = amx.panel_phases;
    fields["parities"] = amx.parities;
    fields["batch_block"] = amx.batch_block;
    fields["position_block"] = amx.position_block;
    fields["in_block"] = amx.in_block;
    fields["out_block"] = amx.out_block;
    fields["pass_tiles"] = amx.pass_tiles;
    fields["reduction_chunks"] = std::max<int64_t>(1, amx.reduction_chunks);
    fields["scratch_bytes"] = amx.scratch_bytes;
    fields["shared_bytes"] = amx.packed_bytes + amx.partial_bytes;
    return fields;
  }
  if (family == Family::kFft) {
    fields["algorithm"] = "fft";
    fields["fft_length"] = fft.length;
    fields["fft_blocks"] = fft.phases * fft.blocks;
    fields["row_block"] = fft.row_block;
    fields["block_tile"] = fft.block_tile;
    fields["multiplications"] = fft.multiplications;
    fields["scratch_bytes"] = fft.scratch_bytes;
    fields["shared_bytes"] = fft.most_groups * (fft.weight_bytes + fft.signal_bytes);
    return fields;
  }
  if (family == Family::kToomCook) {
    fields["algorithm"] = "toom-cook";
    constexpr const char* kForms[] = {"pairs", "pairs of pairs", "fours"};
    fields["form"] = kForms[int(toom_cook.form)];
    fields["taps"] = toom_cook.taps;
    fields["chunks"] = toom_cook.chunks;
    fields["batch_block"] = toom_cook.batch_block;
    fields["patch_block"] = toom_cook.patch_block;
    fields["channel_block"] = toom_cook.channel_block;
    fields["multiplications"] = toom_cook.multiplications;
    fields["reduction_chunks"] = std::max<int64_t>(1, toom_cook.reduction_chunks);
    fields["scratch_bytes"] = toom_cook.scratch_bytes;
    fields["shared_bytes"] = toom_cook.packed_bytes + toom_cook.partial_bytes;
    return fields;
  }
  fields["algorithm"] = algorithm_name(plan.algorithm);
  fields["batch_block"] = plan.batch_block;
  fields["position_block"] = plan.position_block;
  fields["out_block"] = plan.out_block;
  fields["channel_block"] = plan.channel_block;
  fields["part_channels"] = plan.part_channels;
  fields["tap_block"] = plan.tap_block;
  fields["panel_phases"] = plan.panel_phases;
  fields["pack_weight"] = plan.pack_weight == PackWeight::kAll     ? "all"
                          : plan.pack_weight == PackWeight::kTiles ? "tiles"
                                                                   : "no";
  fields["pass_tiles"] = plan.pass_tiles;
  fields["in_place"] = plan.in_place;
  fields["direct"] = plan.direct;
  fields["reduction_chunks"] = plan.reduction_chunks;
  fields["units"] = plan.units;
  fields["scratch_bytes"] = plan.scratch_bytes;
  fields["partial_bytes"] = plan.partial_bytes;
  fields["packed_bytes"] = plan.packed_bytes;
  return fields;
}

// GFLOP/s of float32 on one core, with the instruction set in use: what no kernel can exceed.
double fma_peak() {
  const KernelTable& table = kernel_table();
  constexpr int64_t kIterations = 1 << 20;
  volatile float sink;
  sink = table.run_fmas(kIterations);
  const auto start = std::chrono::steady_clock::now();
  sink = table.run_fmas(kIterations);
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  (void)sink;
  return 2.0 * kIterations * table.tile_float.accumulators * table.tile_float.lanes / time.count();
}

PyMethodDef entry_points[] = {
    {"conv1d", castPyCFunctionWithKeywords(conv1d_entry), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"conv1d_padded", castPyCFunctionWithKeywords(conv1d_padded_entry), METH_VARARGS | METH_KEYWORDS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace conv1d_ext

PYBIND11_MODULE(_C, m) {
  using namespace conv1d_ext;
  if (PyModule_AddFunctions(m.ptr(), entry_points) != 0) throw py::error_already_set();
  m.def("build_info", &build_info, "What this binary was built with.");
  m.def("isa", [] { return isa_name(current_isa()); }, "The instruction set in use.");
  m.def("supported_isas", &isas<isa_supported>, "The instruction sets that this CPU and this build have.");
  m.def("set_isa", torch::wrap_pybind_function(&use_isa), "For tests: choose an instruction set.");
  m.def(
      "cache_sizes", [] { return std::pair(cache_sizes().l1, cache_sizes().l2); },
      "Bytes of L1 and L2 per core, as far as plans use them.");
  m.def(
      "set_cache_sizes", [](int64_t l1, int64_t l2) { set_cache_sizes({l1, l2, cache_sizes().amd}); },
      "For tests: plan for such caches.");
  m.def("fft_use", &chosen<Family::kFft>, "Where convolutions go through the FFT.");
  m.def(
      "set_fft_use", torch::wrap_pybind_function(&choose<Family::kFft>),
      "'never', 'where faster', for tests 'where possible'.");
  m.def("toom_cook_use", &chosen<Family::kToomCook>, "The same of Toom-Cook's algorithm.");
  m.def("set_toom_cook_use", torch::wrap_pybind_function(&choose<Family::kToomCook>), "As set_fft_use.");
  m.def("reduced_precision", &reduced_precision, "Whether float32 may have larger errors than direct sums.");
  m.def("set_reduced_precision", &set_reduced_precision, "As reduced_precision.");
  m.def("amx_use", &chosen<Family::kAmx>, "The same of the matrix unit.");
  m.def("set_amx_use", torch::wrap_pybind_function(&choose<Family::kAmx>), "As set_fft_use.");
  m.def("cuda_enabled", &cuda_enabled, "Whether CUDA tensors go to the CUDA kernels, where these were built.");
  m.def("set_cuda_enabled", &set_cuda_enabled, "False: they go to torch's operator.");
  m.def(
      "cuda_arithmetic", &cuda_arithmetic, "What operands of a dtype are computed in on such a GPU; None: by torch.",
      py::arg("dtype"), py::arg("capability"), py::arg("shared_bytes"));
  m.def("fma_peak", &fma_peak, "Measures the GFLOP/s of float32 FMAs on one core.");
  m.def(
      "plan", torch::wrap_pybind_function(&plan), "The kernels' plan for a problem with contiguous operands.",
      py::arg("op"), py::arg("dtype"), py::kw_only(), py::arg("batch"), py::arg("in_channels"), py::arg("in_length"),
      py::arg("out_channels"), py::arg("kernel_size"), py::arg("stride") = 1, py::arg("padding_left") = 0,
      py::arg("padding_right") = 0, py::arg("dilation") = 1, py::arg("groups") = 1, py::arg("padding_mode") = "zeros",
      py::arg("accumulate") = false);
}
