// Runs a model from Python: run_model <model> <input> <output>. There, after conv1d_ext.convert(model):
//   model.pt    torch.jit.trace(model, x).save("model.pt"), or torch.jit.script(model).save("model.pt")
//   model.pt2   torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path="model.pt2")
//   input.pt    torch.save(x, "input.pt")
// and torch.load reads the output. The program names nothing of conv1d_ext: the library, by being linked, registers the
// operators that the model calls.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

at::Tensor load_tensor(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return torch::jit::pickle_load({std::istreambuf_iterator<char>(file), {}}).toTensor();
}

void save_tensor(const at::Tensor& tensor, const char* path) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
}

at::Tensor run(const std::filesystem::path& model, const at::Tensor& input) {
  if (model.extension() == ".pt2") return torch::inductor::AOTIModelPackageLoader(model).run({input}).front();
  return torch::jit::load(model).forward({input}).toTensor();
}

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: %s <model.pt or model.pt2> <input.pt> <output.pt>\n", argv[0]), 2;
  const c10::InferenceMode no_gradients;
  save_tensor(run(argv[1], load_tensor(argv[2])), argv[3]);
}
