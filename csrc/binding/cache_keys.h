// Purpose: keys of a cache as bytes that tell types apart, and back. pgalloc/cache/keys.py writes the same ones down in
// snapshots and for peers:
//
//   t count parts     a tuple
//   i length number   an int, little-endian, two's complement, one bit more than it needs
//   s length UTF-8    a str; lone surrogates as if they were characters
//   b length bytes
//
// Lengths and counts are four bytes, little-endian. Exactly these types, not their subclasses: no code of theirs runs.
//
// Thread safety: with the GIL.
#pragma once

#include <Python.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>

namespace pgalloc::binding {

// Bytes that are written one behind the other; few of them need no memory.
class KeyBytes {
 public:
  KeyBytes() = default;
  KeyBytes(const KeyBytes&) = delete;
  KeyBytes& operator=(const KeyBytes&) = delete;

  void append(const char* data, size_t size) {
    if (large_.empty() && size <= small_.size() - used_) {
      std::memcpy(small_.data() + used_, data, size);
      used_ += size;
      return;
    }
    if (large_.empty()) large_.assign(small_.data(), used_);
    large_.append(data, size);
  }
  std::string_view view() const {
    return large_.empty() ? std::string_view(small_.data(), used_) : std::string_view(large_);
  }

 private:
  std::array<char, 240> small_;
  size_t used_ = 0;
  std::string large_;
};

enum class Encoded : uint8_t {
  kKey,
  kNoKey,  // it cannot be one: keys.py says why
  kError,  // with an exception set
};

Encoded encode_key(PyObject* key, KeyBytes* bytes);
// New reference; nullptr with an exception set. REQUIRES: encode_key() made it.
PyObject* decode_key(std::string_view bytes);

}  // namespace pgalloc::binding
