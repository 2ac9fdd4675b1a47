// Purpose: shows that decoding an image gives back what was encoded, that no damage to it goes
// unnoticed, and that what the decoders accept is what the format allows, and nothing else.
//
//   image_driver [--edits N] [--seed S] [--every-bit] [--messages] [--plant [data|usage|index]]
//
//   --every-bit   flips each bit of a small image in turn, too
//   --messages    prints what the decoders said, and how often
//   --plant       leaves out a check of: the data's checksum, the usage set, or the index against
//                 the heads. Must fail
//
// Each image is read by two readers, of which one seeks and the other goes forward. Damaged images
// must be refused by both. Forged ones, whose checksums fit again, must be accepted by both if the
// oracle accepts them, with the same contents, and else be refused by both.

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/crc32c.h"
#include "image_driver/build.h"
#include "image_driver/edits.h"
#include "image_driver/oracle.h"
#include "image_driver/readers.h"
#include "torture/random.h"

namespace pgalloc::image_driver {
namespace {

using torture::Random;

[[noreturn]] void fail(const std::string& what) {
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

// --- The checksum --------------------------------------------------------------------------------

uint32_t crc32c_by_bits(std::string_view bytes) {
  uint32_t state = ~uint32_t{0};
  for (const char byte : bytes) {
    state ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ ((state & 1) != 0 ? 0x82F63B78 : 0);
  }
  return ~state;
}

void check_vector(std::string_view bytes, uint32_t expected) {
  if (crc32c(bytes.data(), bytes.size()) != expected ||
      testing::crc32c_portable(bytes.data(), bytes.size()) != expected) {
    fail("the checksum of a vector of RFC 3720");
  }
}

void check_vectors() {
  std::string ascending(32, '\0');
  for (size_t i = 0; i < ascending.size(); ++i) ascending[i] = static_cast<char>(i);
  const std::string descending(ascending.rbegin(), ascending.rend());
  check_vector("123456789", 0xE3069283);
  check_vector(std::string(32, '\0'), 0x8A9136AA);
  check_vector(std::string(32, '\xFF'), 0x62A8AB43);
  check_vector(ascending, 0x46DD794E);
  check_vector(descending, 0x113FDB5C);
}

void compare_checksums(Random& random, uint64_t rounds) {
  std::string buffer(50'000, '\0');
  for (char& byte : buffer) byte = static_cast<char>(random.next());
  for (uint64_t i = 0; i < rounds; ++i) {
    const uint64_t length = random.below(random.one_in(10) ? buffer.size() : 300);
    const auto part =
        std::string_view(buffer).substr(random.below(buffer.size() - length + 1), length);
    const uint64_t half = random.below(length + 1);
    const uint32_t whole = crc32c(part.data(), length);
    const uint32_t joined = crc32c(part.data() + half, length - half, crc32c(part.data(), half));
    if (whole != testing::crc32c_portable(part.data(), length)) fail("the portable checksum");
    if (whole != joined) fail("a checksum that is continued");
    if (length < 300 && whole != crc32c_by_bits(part)) fail("the checksum");
  }
}

// --- The format ----------------------------------------------------------------------------------

class Fuzz {
 public:
  Fuzz(uint64_t seed, Plant plant) : random_(seed), plant_(plant) {}

  void run(uint64_t edits) {
    while (edits_ < edits) {
      const Image image = build_image(random_);
      ++images_;
      check_intact(image);
      // Large images cost more and tell no more.
      constexpr uint64_t kBytesPerImage = uint64_t{16} << 20;
      const uint64_t share = std::clamp<uint64_t>(kBytesPerImage / image.bytes.size(), 4, 200);
      for (uint64_t i = 0; i < share && edits_ < edits; ++i) edit(image);
    }
  }

  void flip_every_bit() {
    const Image image = build_small_image(random_);
    check_intact(image);
    std::string bytes = image.bytes;
    for (uint64_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      const char mask = static_cast<char>(1 << bit % 8);
      bytes[bit / 8] ^= mask;
      check_damaged(bytes, "bit " + std::to_string(bit) + " of a small image flipped");
      bytes[bit / 8] ^= mask;
    }
    std::printf("image_driver: every bit of an image of %zu bytes flipped\n", bytes.size());
  }

  void print_summary() const {
    std::printf("image_driver: %llu edits of %llu images, %llu forgeries valid, %zu messages\n",
                number(edits_), number(images_), number(valid_), messages_.size());
  }
  void print_messages() const {
    for (const auto& [message, count] : messages_) {
      std::printf("%9llu  %s\n", number(count), message.c_str());
    }
  }

 private:
  static unsigned long long number(uint64_t value) { return value; }

  void check_intact(const Image& image) {
    check_valid(image.bytes, image.contents, "an intact image");
    const auto consulted = consult(image.bytes);
    if (!consulted || *consulted != image.contents) fail("the oracle read something else");
    const std::string longer = image.bytes + std::string(1 + random_.below(page_size()), '\0');
    if (read_seeking(longer, plant_).ok()) fail("surplus bytes behind an image were accepted");
    if (!read_forward(longer, plant_).ok()) fail("a stream that goes on was refused");
  }

  void edit(const Image& image) {
    ++edits_;
    edited_ = image.bytes;
    const bool damaged = random_.one_in(2);
    const auto change = damaged ? damage : random_.one_in(4) ? rebuild : forge;
    const char* const what = change(image, random_, &edited_);
    if (edited_ == image.bytes) return;
    edited_.shrink_to_fit();  // so that a sanitizer sees who reads beyond it
    const auto contents = damaged ? std::nullopt : consult(edited_);
    if (!contents) return check_damaged(edited_, what);
    ++valid_;
    check_valid(edited_, *contents, what);
  }

  void check_valid(const std::string& bytes, const Contents& contents, const std::string& what) {
    check_accepted(read_seeking(bytes, plant_), contents, what + ", by the reader that seeks");
    check_accepted(read_forward(bytes, plant_), contents, what + ", by the reader going forward");
  }
  void check_accepted(const Result<Contents>& read, const Contents& contents,
                      const std::string& what) {
    if (!read.ok()) report("refused", what + ": " + read.status().message());
    if (*read != contents) report("read as something else", what);
  }

  void check_damaged(const std::string& bytes, const std::string& what) {
    check_refused(read_seeking(bytes, plant_), what + ", by the reader that seeks");
    check_refused(read_forward(bytes, plant_), what + ", by the reader going forward");
  }
  void check_refused(const Result<Contents>& read, const std::string& what) {
    if (read.ok()) report("accepted", what);
    const ErrorCode code = read.status().code();
    if (code != ErrorCode::kSnapshotCorrupt && code != ErrorCode::kSnapshotVersion) {
      report("refused with another code", what);
    }
    note(read.status().message());
  }

  // Counts a message, numbers aside.
  void note(const std::string& message) {
    std::string kind;
    for (const char c : message) {
      if (std::isdigit(static_cast<unsigned char>(c)) == 0) {
        kind += c;
      } else if (kind.empty() || kind.back() != '#') {
        kind += '#';
      }
    }
    kind = kind.substr(0, kind.find(" '"));  // a hook's name follows
    ++messages_[kind];
  }

  [[noreturn]] void report(const char* verdict, const std::string& what) {
    fail("image " + std::to_string(images_) + ", edit " + std::to_string(edits_) + ": " + what +
         ": " + verdict);
  }

  Random random_;
  const Plant plant_;
  uint64_t images_ = 0;
  uint64_t edits_ = 0;
  uint64_t valid_ = 0;
  std::map<std::string, uint64_t> messages_;
  std::string edited_;
};

Plant plant_named(std::string_view name) {
  if (name == "usage") return Plant::kUsage;
  if (name == "index") return Plant::kIndex;
  return Plant::kData;
}

}  // namespace
}  // namespace pgalloc::image_driver

int main(int argc, char** argv) {
  using namespace pgalloc::image_driver;
  uint64_t edits = 100'000;
  uint64_t seed = 1;
  bool every_bit = false;
  bool messages = false;
  Plant plant = Plant::kNone;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    const bool has_value = i + 1 < argc && argv[i + 1][0] != '-';
    if (option == "--edits" && has_value) {
      edits = std::strtoull(argv[++i], nullptr, 10);
    } else if (option == "--seed" && has_value) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (option == "--every-bit") {
      every_bit = true;
    } else if (option == "--messages") {
      messages = true;
    } else if (option == "--plant") {
      plant = plant_named(has_value ? argv[++i] : "data");
    } else {
      std::fprintf(stderr,
                   "usage: %s [--edits N] [--seed S] [--every-bit] [--messages]\n"
                   "       [--plant [data|usage|index]]\n",
                   argv[0]);
      return 2;
    }
  }
  check_vectors();
  pgalloc::torture::Random random(seed);
  compare_checksums(random, std::min<uint64_t>(edits, 20'000));
  Fuzz fuzz(seed, plant);
  if (every_bit) fuzz.flip_every_bit();
  fuzz.run(edits);
  fuzz.print_summary();
  if (messages) fuzz.print_messages();
}
