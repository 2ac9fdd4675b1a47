// Purpose: the tests of the core in C++. TEST(name) { ... } defines one, EXPECT and EXPECT_EQ check; a
// failed check is printed with its place, and the test goes on.
//
// Thread safety: checks belong to the thread of the test.
#pragma once

#include <cstdint>
#include <iostream>
#include <optional>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/units.h"

namespace pgalloc::native_tests {

struct Test {
  std::string name;  // unit.name
  void (*body)();
};

inline std::vector<Test> tests;
inline int failures = 0;
inline std::string context;  // printed with failures: a seed, a step

inline bool add_test(std::string file, const char* name, void (*body)()) {
  file = file.substr(file.rfind('/') + 1);
  tests.push_back({file.substr(0, file.rfind("_test.cc")) + "." + name, body});
  return true;
}

// So that EXPECT_EQ prints what it compared.
template <class Value>
void print(const Value& value) {
  if constexpr (std::is_same_v<Value, FileRange>) {
    std::cerr << std::hex << "[0x" << value.start << ", 0x" << value.end << std::dec << ")";
  } else if constexpr (std::is_enum_v<Value> || std::is_same_v<Value, uint8_t>) {
    std::cerr << static_cast<uint64_t>(value);
  } else if constexpr (requires { std::cerr << value; }) {
    std::cerr << value;
  } else if constexpr (requires { value.count(); }) {
    std::cerr << value.count();
  } else if constexpr (requires { *value, value.has_value(); }) {
    value ? print(*value) : print("nothing");
  } else if constexpr (requires { value.first, value.second; }) {
    std::cerr << "(", print(value.first), std::cerr << ", ", print(value.second), std::cerr << ")";
  } else if constexpr (std::ranges::range<Value>) {
    std::cerr << "{ ";
    for (const auto& element : value) print(element), std::cerr << " ";
    std::cerr << "}";
  } else {
    std::cerr << "?";
  }
}

inline bool failed(const char* file, int line, const char* what) {
  ++failures;
  std::cerr << "  " << file << ":" << line << ": " << what << " " << context << "\n";
  return false;
}

template <class Left, class Right>
bool expect_eq(const char* file, int line, const char* what, const Left& left, const Right& right) {
  if (left == right) return true;
  failed(file, line, what);
  std::cerr << "    ", print(left), std::cerr << "\n    ", print(right), std::cerr << "\n";
  return false;
}

}  // namespace pgalloc::native_tests

#define TEST(name)                                                                            \
  static void name();                                                                         \
  static const bool name##_added = ::pgalloc::native_tests::add_test(__FILE__, #name, &name); \
  static void name()
#define EXPECT(condition) \
  ((condition) ? true : ::pgalloc::native_tests::failed(__FILE__, __LINE__, #condition))
#define EXPECT_EQ(left, right) \
  ::pgalloc::native_tests::expect_eq(__FILE__, __LINE__, #left " == " #right, (left), (right))
