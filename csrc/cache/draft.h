// Purpose: what the index of a cache needs for a value that is about to come. It is there before anything changes, and given
// back if it is not used.
//
// Thread safety: externally synchronised (the cache's lock: to be declared after it is taken).
#pragma once

#include <utility>

#include "cache/index_layout.h"
#include "cache/key_arena.h"
#include "cache/tags.h"

namespace pgalloc::cache {

class Draft {
 public:
  Draft(KeyArena& keys, Tags& tags) : keys_(keys), tags_(tags) {}
  Draft(Draft&& other) noexcept
      : fields(other.fields),
        has_key(std::exchange(other.has_key, false)),
        tag(std::exchange(other.tag, nullptr)),
        keys_(other.keys_),
        tags_(other.tags_) {}
  ~Draft() {
    if (has_key) keys_.remove(fields.key_place, fields.key_length);
    if (tag != nullptr) tags_.let_go(*tag);
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  Fields fields;
  bool has_key = false;      // its key is in the arena, and no entry's yet
  Tags::Tag* tag = nullptr;  // claimed

 private:
  KeyArena& keys_;
  Tags& tags_;
};

}  // namespace pgalloc::cache
