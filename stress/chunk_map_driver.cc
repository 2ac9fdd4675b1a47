// Purpose: the hand-over of a freshly mapped chunk to threads that take no lock (rows B11, E3).
//
// In each round one thread maps a chunk while others wait for is_mapped() and touch the chunk as
// soon as it says so. Under ThreadSanitizer this fails unless the flag is published after the
// mapping and read before the touch: on x86 the processor alone would hide a missing acquire or
// release.
//
//   chunk_map_driver [--rounds N] [--plant]     --plant: wait for a flag that orders nothing
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "backing/chunk_map.h"
#include "base/check.h"

namespace pgalloc {
namespace {

constexpr uint64_t kChunks = 4;
constexpr int kReaders = 2;

// The planted bug: chunks mapped so far, told without ordering anything.
std::atomic<uint64_t> mapped_unordered{0};

// Touches the borders of every chunk, in the order in which they appear.
void read_chunks(const ChunkMap& chunks, bool plant) {
  for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
    const FileRange whole{chunk * kChunkSize, (chunk + 1) * kChunkSize};
    while (plant ? mapped_unordered.load(std::memory_order_relaxed) <= chunk
                 : !chunks.is_mapped(whole)) {
    }
    PGALLOC_CHECK_OP(static_cast<int>(*chunks.address(whole.start)), ==, 0);
    PGALLOC_CHECK_OP(static_cast<int>(*chunks.address(whole.end - 1)), ==, 0);
  }
}

void round(bool plant) {
  const int fd = ::memfd_create("chunk_map_driver", MFD_CLOEXEC);
  PGALLOC_CHECK(fd >= 0);
  PGALLOC_CHECK(::ftruncate(fd, kChunks * kChunkSize) == 0);
  auto reserved = ChunkMap::reserve(kChunks * kChunkSize);
  PGALLOC_CHECK(reserved.ok());
  ChunkMap& chunks = **reserved;

  mapped_unordered = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < kReaders; ++i) readers.emplace_back([&] { read_chunks(chunks, plant); });
  for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
    PGALLOC_CHECK(chunks.map(fd, {chunk * kChunkSize, chunk * kChunkSize + 1}).ok());
    mapped_unordered.fetch_add(1, std::memory_order_relaxed);
  }
  for (std::thread& reader : readers) reader.join();
  ::close(fd);
}

}  // namespace
}  // namespace pgalloc

int main(int argc, char** argv) {
  int rounds = 20;
  bool plant = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--plant") == 0) plant = true;
    if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) rounds = std::atoi(argv[++i]);
  }
  for (int i = 0; i < rounds; ++i) pgalloc::round(plant);
  std::printf("chunk_map_driver: %d rounds\n", rounds);
}
