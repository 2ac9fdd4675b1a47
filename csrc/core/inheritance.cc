#include "core/inheritance.h"

#include <new>

#include "core/memory_file.h"

namespace pgalloc {
namespace {

struct State {
  bool armed = false;
  std::vector<InheritedFile> files;
};

// Not a thread_local object: its destructor would run in threads that never forked.
thread_local State* state = nullptr;

}  // namespace

void Inheritance::arm() {
  if (state == nullptr) state = new State;
  state->armed = true;
}

bool Inheritance::armed() { return state != nullptr && state->armed; }

void Inheritance::prepare(MemoryFile* file) try {
  // Kept in any case: this may be the file's last owner, and it cannot be destroyed from here.
  file->lease_to_child(&state->files.emplace_back());
} catch (const std::bad_alloc&) {
  state->armed = false;  // the child does without this file, and those behind it
}

std::vector<InheritedFile> Inheritance::take() {
  if (state == nullptr) return {};
  std::vector<InheritedFile> files = std::move(state->files);
  delete state;
  state = nullptr;
  return files;
}

}  // namespace pgalloc
