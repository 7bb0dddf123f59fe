// The fence itself: one element beyond either end ends the process, with or without a sanitizer, and what is written
// inside the field is found afterwards.
#include "fenced.h"

#include <sys/wait.h>

#include "check.h"

namespace {

// As code that no sanitizer has instrumented would.
__attribute__((no_sanitize("address"), noinline)) void touch(volatile float* p) { *p = 1; }

template <class F>
bool survives(const F& f) {
  const pid_t child = fork();
  if (child == 0) {
    f();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  for (const int64_t size : {0, 1, 1023, 1024, 1025}) {
    Fenced<float> first(size, Flush::kBegin), last(size, Flush::kEnd);
    CHECK(!survives([&] { touch(first.data() - 1); }));
    CHECK(!survives([&] { touch(last.data() + size); }));
    CHECK(survives([&] {
      for (int64_t i = 0; i < size; ++i) touch(&first[i]), touch(&last[i]);
      if (!first.intact() || !last.intact()) _exit(1);
    }));
    if (size % 1024 != 0) {
      touch(first.data() + size);
      touch(last.data() - 1);
      CHECK(!first.intact() && !last.intact());
    }
  }
  return failures() > 0;
}
