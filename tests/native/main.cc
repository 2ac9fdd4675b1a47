// native_tests [--list] [PART]: runs the tests whose name contains PART, or says which there are.
// native_tests --alone NAME: runs one test here.
//
// Each test has a process of its own, a new one: threads, descriptors and handlers of forks that one
// leaves behind are not there in the next, and one that crashes fails alone.

#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string_view>
#include <vector>

#include "native/test.h"

extern char** environ;

namespace pgalloc::native_tests {
namespace {

constexpr unsigned kHangs_s = 240;  // a test that waits for ever

int run_alone(std::string_view name) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::alarm(kHangs_s);
  const auto test = std::ranges::find(tests, name, &Test::name);
  if (test == tests.end()) return 1;
  test->body();
  return failures == 0 ? 0 : 1;
}

bool passes(const Test& test) {
  std::string name = test.name;
  char program[] = "native_tests", alone[] = "--alone";
  char* arguments[] = {program, alone, name.data(), nullptr};
  pid_t pid = 0;
  if (::posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments, environ) != 0)
    return false;
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return false;
  if (WIFSIGNALED(status)) std::cerr << "  signal " << WTERMSIG(status) << "\n";
  return status == 0;
}

int main(int count, char** arguments) {
  const std::string_view option = count > 1 ? arguments[1] : "";
  if (option == "--alone" && count > 2) return run_alone(arguments[2]);
  const bool list = option == "--list";
  const std::string_view part = count > 1 + list ? arguments[1 + list] : "";
  std::erase_if(tests, [&](const Test& test) { return test.name.find(part) == test.name.npos; });
  std::stable_sort(tests.begin(), tests.end(),
                   [](const Test& a, const Test& b) { return a.name < b.name; });
  std::vector<std::string_view> failed;
  for (const Test& test : tests) {
    if (list) {
      std::cout << test.name << "\n";
      continue;
    }
    std::cerr << test.name << "\n";
    if (passes(test)) continue;
    std::cerr << "FAILED " << test.name << "\n";
    failed.push_back(test.name);
  }
  if (list) return tests.empty() ? 1 : 0;
  // Again at the end, which is what is read of a long log.
  std::cerr << tests.size() << " tests, " << failed.size() << " failed\n";
  for (const std::string_view name : failed) std::cerr << "FAILED " << name << "\n";
  return !failed.empty() || tests.empty() ? 1 : 0;
}

}  // namespace
}  // namespace pgalloc::native_tests

int main(int count, char** arguments) { return pgalloc::native_tests::main(count, arguments); }
