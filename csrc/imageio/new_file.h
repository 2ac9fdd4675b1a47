// Purpose: a file that appears under its name complete or not at all, and replaces what was there
// in one step (row J8).
//
// Thread safety: externally synchronised.
//
// Where the file system can, and /proc is there, the file has no name while it is written, so that not
// even a crash leaves anything behind; elsewhere it has a temporary one beside its place.
//
// A file that is replaced hands its permissions, owner, group and access control list on. Where this
// user may not give files to that owner or group, the new file is this user's, and the group that it
// then has gets no permissions. A file where none was gets the mode that the umask says.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "base/process_generation.h"
#include "base/status.h"
#include "os/descriptor.h"

struct statx;

namespace pgalloc {

class NewFile {
 public:
  // Fails, and names nothing new, where the file could not take its place in the end: where that is
  // a folder, a mount point, or another user's file in a folder like /tmp.
  static Result<std::unique_ptr<NewFile>> create(const std::string& path);
  // Without publish(), nothing has happened.
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // To be looked at before each use.
  const os::Descriptor& file() const { return file_; }
  // Everything on disk, then under the name, then the name on disk. If only the last step fails, the
  // new file has taken its place, but a crash of the machine may undo that.
  Status publish();

 private:
  explicit NewFile(std::string path) : path_(std::move(path)) {}
  static Result<std::unique_ptr<NewFile>> open(const std::string& path, mode_t mode);
  Status become_like(const struct statx& old);
  Status take_place();
  Status name_it();

  const std::string path_;
  const uint32_t generation_ = process_generation();
  os::Descriptor file_;
  std::string temporary_;  // empty while the file has no name
};

}  // namespace pgalloc
