// native_tests [--list] [PART]: runs the tests whose name contains PART, or says which there are.

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string_view>

#include "native/support.h"

void* operator new(size_t size) {
  using pgalloc::native_tests::allocations_until_failure;
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) throw std::bad_alloc();
  void* const memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

constexpr unsigned kHangs_s = 240;  // a test that waits for ever

}  // namespace

int main(int count, char** arguments) {
  using namespace pgalloc::native_tests;
  const bool list = count > 1 && std::string_view(arguments[1]) == "--list";
  const std::string_view part = count > 1 + list ? arguments[1 + list] : "";
  std::erase_if(tests, [&](const Test& test) { return test.name.find(part) == test.name.npos; });
  std::stable_sort(tests.begin(), tests.end(),
                   [](const Test& a, const Test& b) { return a.name < b.name; });
  int failed_tests = 0;
  for (const Test& test : tests) {
    if (list) {
      std::cout << test.name << "\n";
      continue;
    }
    ::alarm(kHangs_s);
    failures = 0;
    context.clear();
    std::cerr << test.name << "\n";
    test.body();
    if (failures == 0) continue;
    ++failed_tests;
    std::cerr << "FAILED " << test.name << "\n";
  }
  if (!list) std::cerr << tests.size() << " tests, " << failed_tests << " failed\n";
  return failed_tests > 0 || tests.empty() ? 1 : 0;
}
