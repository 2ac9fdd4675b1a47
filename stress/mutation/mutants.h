// Purpose: which mutant runs, and which were reached. Included before everything else in a build with
// mutants; see ../mutants.py.
//
// Thread safety: any thread, any process: what was reached is marked in a file that all of them map.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

namespace pgalloc_mutants {

constexpr size_t kReachedBytes = 4096;  // one byte for each mutant

inline int number_from_environment() {
  const char* const number = std::getenv("PGALLOC_MUTANT");
  return number == nullptr ? -1 : std::atoi(number);
}

inline volatile unsigned char* map_reached() {
  const char* const path = std::getenv("PGALLOC_MUTANTS_REACHED");
  if (path == nullptr) return nullptr;
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* const bytes = ::mmap(nullptr, kReachedBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  return bytes == MAP_FAILED ? nullptr : static_cast<unsigned char*>(bytes);
}

inline const int number = number_from_environment();
inline volatile unsigned char* const reached = map_reached();

constexpr bool chosen(int mutant) {
  if (__builtin_is_constant_evaluated()) return false;
  if (reached != nullptr) reached[mutant] = 1;
  return number == mutant;
}

}  // namespace pgalloc_mutants
