// A check that fails says where and what, and ends the process.

#include "base/check.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "native/support.h"

namespace pgalloc::check_test {
namespace {

// What a process says whose last act this is, and the signal that ends it.
std::pair<std::string, int> ended_by(void (*act)()) {
  int pipe[2];
  EXPECT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe[1], STDERR_FILENO);
    ::alarm(30);
    act();
    ::_exit(0);
  }
  ::close(pipe[1]);
  std::string said;
  char bytes[1000];
  for (ssize_t size; (size = ::read(pipe[0], bytes, sizeof bytes)) > 0;) {
    said.append(bytes, static_cast<size_t>(size));
  }
  ::close(pipe[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return {said, WIFSIGNALED(status) ? WTERMSIG(status) : 0};
}

int evaluated = 0;
uint64_t seven() { return ++evaluated, 7; }

TEST(what_holds_goes_on) {
  PGALLOC_CHECK(seven() == 7);
  PGALLOC_CHECK_OP(seven(), <, 8u);
  EXPECT_EQ(evaluated, 2);
  EXPECT_EQ(ended_by([] {}), (std::pair<std::string, int>("", 0)));
}

TEST(what_does_not_hold_ends_the_process_and_is_named) {
  const auto [said, signal] = ended_by([] { PGALLOC_CHECK(seven() == 8); });
  EXPECT_EQ(signal, SIGABRT);
  EXPECT(said.find("check_test.cc") != said.npos);
  EXPECT(said.ends_with("internal check failed: seven() == 8\n"));
}

TEST(both_sides_of_a_comparison_are_said) {
  const auto [said, signal] = ended_by([] { PGALLOC_CHECK_OP(seven(), >=, 26u); });
  EXPECT_EQ(signal, SIGABRT);
  EXPECT(said.ends_with("internal check failed: seven() >= 26u (7 [0x7] vs 26 [0x1a])\n"));
}

}  // namespace
}  // namespace pgalloc::check_test
