// Purpose: one descriptor of ours. Programs close descriptors that are not theirs (before they become
// daemons, after they fork), and the number is then another file's: so it is looked at before it is
// used.
//
// Thread safety: externally synchronised; intact() may be called from several threads at once.
//
// Invariant: a descriptor that is not ours any more is neither used nor closed.
#pragma once

#include <sys/types.h>

#include <utility>

namespace pgalloc::os {

class Descriptor {
 public:
  Descriptor() = default;
  // Takes over a descriptor that is open, or nothing (-1). What could not be known again is closed at
  // once, and errno says why.
  explicit Descriptor(int fd);
  // The same, but what could not be known again stays open: it is the caller's still.
  static Descriptor adopt(int fd);
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { close(); }

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  // Whether the descriptor is still the file that was taken over.
  bool intact() const;
  // Whether that is the file behind another one.
  bool is_same_file(int fd) const;
  void close();
  // It is the caller's from here on.
  int release() { return std::exchange(fd_, -1); }

 private:
  bool recognise(int fd);

  int fd_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace pgalloc::os
