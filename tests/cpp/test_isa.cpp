// The choice of an instruction set: names, what is refused, and the environment variable (its value is the argument).
#include <cstring>

#include "check.h"
#include "cpu/isa.h"

using namespace conv1d_ext;

int main(int argc, char** argv) {
  Isa parsed{};
  for (Isa isa : kAllIsas) CHECK(parse_isa(isa_name(isa), &parsed) && parsed == isa);
  CHECK(!parse_isa("sse9", &parsed));
  CHECK(isa_supported(Isa::kPortable));
  if (argc > 1) CHECK(std::strcmp(isa_name(current_isa()), argv[1]) == 0);

  for (Isa isa : kAllIsas) {
    const Isa before = current_isa();
    CHECK(set_isa(isa) == isa_supported(isa));
    CHECK(current_isa() == (isa_supported(isa) ? isa : before));
    CHECK(&kernel_table() == &kernel_table(current_isa()));
  }
  return failures();
}
