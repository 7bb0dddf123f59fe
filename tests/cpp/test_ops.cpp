// The operators called from many threads at once: from within a parallel region of torch, and from threads that each
// set a number of threads of their own. Results are those of one thread, to the bit.
#include <ATen/Parallel.h>
#include <conv1d.h>
#include <torch/torch.h>

#include <thread>
#include <vector>

#include "check.h"

namespace {

constexpr int kCalls = 16;

// Of a different length for each call.
at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, int call) {
  const conv1d_ext::SymGeometry geometry{.padding_left = call, .padding_right = 3};
  return conv1d_ext::conv1d(geometry, input, weight, std::nullopt);
}

void check_equal(const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected) {
  for (int call = 0; call < kCalls; ++call) CHECK(at::equal(actual[call], expected[call]));
}

}  // namespace

int main() {
  const at::InferenceMode no_autograd;
  const at::Tensor input = torch::randn({2, 48, 900}), weight = torch::randn({40, 48, 5});
  at::set_num_threads(1);
  std::vector<at::Tensor> expected, actual(kCalls);
  for (int call = 0; call < kCalls; ++call) expected.push_back(convolve(input, weight, call));

  at::set_num_threads(4);
  at::parallel_for(0, kCalls, 1, [&](int64_t begin, int64_t end) {
    const at::InferenceMode no_autograd_here;
    for (int64_t call = begin; call < end; ++call) actual[call] = convolve(input, weight, int(call));
  });
  check_equal(actual, expected);

  std::vector<std::thread> threads;
  threads.reserve(kCalls);
  for (int call = 0; call < kCalls; ++call) {
    threads.emplace_back([&, call] {
      const at::InferenceMode no_autograd_here;
      at::set_num_threads(1 + call % 4);
      actual[call] = convolve(input, weight, call);
    });
  }
  for (std::thread& thread : threads) thread.join();
  check_equal(actual, expected);
  return failures() > 0;
}
