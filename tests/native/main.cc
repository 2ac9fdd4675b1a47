// native_tests [--list] [PART]: runs the tests whose name contains PART, or says which there are.

#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "native/test.h"

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
