// The file of an index: other processes read it and cannot write it.

#include "cache/index_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/index_reader.h"
#include "cache/index_writer.h"
#include "native/support.h"
#include "os/fault_plan.h"

namespace pgalloc::cache_index_file_test {
namespace {

using cache::Fields;
using cache::Holds;
using cache::IndexFile;
using cache::SharedFile;
using cache::SharedMemory;
using Writer = cache::IndexWriter<SharedMemory>;
using Reader = cache::IndexReader<SharedMemory>;
using Word = Holds<SharedMemory>::Word;

os::Descriptor another(int fd) { return os::Descriptor(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }
bool any_key(const Fields&) { return true; }
// All different.
uint32_t hash_of(uint64_t key) { return static_cast<uint32_t>(key << 22 | key); }

TEST(what_is_written_is_read_elsewhere) {
  auto file = IndexFile::create(1000);
  EXPECT(file.ok());
  Writer writer(file->index(), 0);
  for (uint64_t key = 0; key < 1000; ++key) {
    const Fields fields{.place = key, .hash = hash_of(key), .holder = 3};
    if (!writer.add(fields)) EXPECT(writer.grow() && writer.add(fields).has_value());
  }
  EXPECT_EQ(writer.add({.hash = 7}),
            std::nullopt);  // no entry is left, and there is no table for more
  auto mapped = IndexFile::map(another(file->file().fd()));
  EXPECT(mapped.ok());
  EXPECT(mapped->secret().first == file->secret().first);
  EXPECT(mapped->index().entries != file->index().entries);
  Word words[4] = {};
  Reader reader(mapped->index(), {words, 4});
  for (uint64_t key = 0; key < 1000; ++key) {
    const auto found = reader.hold(hash_of(key), any_key);
    EXPECT(found && found->place == key);
  }
  EXPECT_EQ(words[3].load() % 65536, 1000u);
}

TEST(an_index_for_many_values_takes_no_memory_before_they_come) {
  auto file = IndexFile::create(uint64_t{1} << 26);
  EXPECT(file.ok());
  const Writer writer(file->index(), 4);
  EXPECT(*file->file().stored_bytes() <= 2 * page_size());
}

TEST(nothing_but_the_mapping_of_its_process_can_write_it) {
  auto file = IndexFile::create(10);
  const int fd = file->file().fd();
  const char byte = 1;
  EXPECT_EQ(::pwrite(fd, &byte, 1, 0), -1);
  EXPECT_EQ(::ftruncate(fd, 0), -1);
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
  EXPECT(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  EXPECT(mapped != MAP_FAILED);
  EXPECT_EQ(::mprotect(mapped, 4096, PROT_READ | PROT_WRITE), -1);
  ::munmap(mapped, 4096);
  // Nor a child, which has no such mapping.
  const pid_t child = ::fork();
  if (child == 0) {
    unsigned char there = 0;
    ::_exit(::mincore(file->file().data(), page_size(), &there) == -1 && errno == ENOMEM ? 0 : 1);
  }
  int status = -1;
  EXPECT(::waitpid(child, &status, 0) == child && status == 0);
}

TEST(what_another_process_writes_keeps_its_size) {
  auto file = SharedFile::create_for_writing(page_size());
  EXPECT(file.ok());
  auto elsewhere = SharedFile::map_for_writing(another(file->fd()), page_size());
  EXPECT(elsewhere.ok());
  elsewhere->data()[5] = 'x';
  EXPECT_EQ(file->data()[5], 'x');
  EXPECT_EQ(::ftruncate(file->fd(), 0), -1);
  EXPECT(SharedFile::map_for_reading(another(file->fd()), 2 * page_size()).status().code() ==
         ErrorCode::kSharing);
}

TEST(what_is_no_index_is_refused) {
  auto zeros = SharedFile::create_for_writing(page_size());
  EXPECT(IndexFile::map(another(zeros->fd())).status().code() == ErrorCode::kSharing);
  // One that says that it is larger than it is.
  auto file = IndexFile::create(10);
  std::memcpy(zeros->data(), file->file().data(), page_size());
  EXPECT(IndexFile::map(another(zeros->fd())).status().code() == ErrorCode::kSharing);
  auto* const words = reinterpret_cast<uint64_t*>(zeros->data());
  words[1] = words[2] = words[3] = ~uint64_t{0};
  EXPECT(IndexFile::map(another(zeros->fd())).status().code() == ErrorCode::kSharing);
}

TEST(a_call_that_fails_leaves_nothing) {
  for (const char* name :
       {"memfd_create", "ftruncate", "mmap", "madvise", "add_seals", "getrandom"}) {
    EXPECT(os::install_fault({.name = name, .error_number = ENOMEM}));
    const auto file = IndexFile::create(10);
    os::remove_fault();
    EXPECT(!file.ok() && file.status().error_number() == ENOMEM);
  }
  auto file = IndexFile::create(10);
  for (const char* name : {"duplicate", "fstat", "mmap"}) {
    os::Descriptor same = another(file->file().fd());
    EXPECT(os::install_fault({.name = name, .error_number = ENOMEM}));
    const auto mapped = IndexFile::map(std::move(same));
    os::remove_fault();
    EXPECT(!mapped.ok() && mapped.status().error_number() == ENOMEM);
  }
}

}  // namespace
}  // namespace pgalloc::cache_index_file_test
