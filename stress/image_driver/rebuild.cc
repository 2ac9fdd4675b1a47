#include <algorithm>

#include "image_driver/edits.h"
#include "image_driver/raw.h"

namespace pgalloc::image_driver {
namespace {

using torture::Random;

// An image taken apart, and put together without asking whether it makes sense.
class Parts {
 public:
  explicit Parts(const Image& image) : front_(image.bytes.substr(0, page_size())) {
    const auto& metadata = image.contents.metadata;
    usage_ = image.bytes.substr(page_size(), metadata.usage.size() * 32);
    restore_id_ = metadata.restore_id;
    for (const image::Hook& hook : metadata.hooks) add_hook(hook.name, hook.payload);
    for (size_t i = 0; i < image.heads.size(); ++i) {
      const uint64_t data = image.heads[i] + page_size();
      const uint64_t end = i + 1 < image.heads.size() ? image.heads[i + 1] : image.index;
      extents_.push_back(
          {image.bytes.substr(image.heads[i], page_size()), image.bytes.substr(data, end - data)});
    }
    end_ = image.bytes.substr(image.trailer);
  }

  const char* change(Random& random) {
    switch (random.below(extents_.empty() ? 5 : 11)) {
      case 0: {
        const uint64_t lengths[] = {0, 65535, 65536, 65537};
        restore_id_.assign(lengths[random.below(4)], 'x');
        return "another length of the restore_id";
      }
      case 1:
        if (!usage_.empty()) usage_.erase(random.below(usage_.size() / 32) * 32, 32);
        return "an entry of the usage set dropped";
      case 2:
        if (!hooks_.empty()) hooks_.erase(hooks_.begin() + random.below(hooks_.size()));
        return "a hook dropped";
      case 3: {
        const size_t lengths[] = {0, 1, 255, 256};
        add_hook(std::string(lengths[random.below(4)], 'n'), "payload");
        return "a hook with another length of name";
      }
      case 4: {
        if (!random.one_in(30)) return "nothing";  // the next costs as much as many others
        const size_t count = 65535 + random.below(3);
        hooks_.clear();
        while (hooks_.size() < count) add_hook(std::to_string(hooks_.size()), "");
        return "very many hooks";
      }
      default:
        return change_extents(random);
    }
  }

  std::string assemble() const {
    std::string bytes = front_ + usage_ + restore_id_;
    for (const std::string& hook : hooks_) bytes += hook;
    set(&bytes, 20, 4, restore_id_.size());
    set(&bytes, 32, 8, usage_.size() / 32);
    set(&bytes, 40, 4, hooks_.size());
    set(&bytes, 48, 8, bytes.size() - page_size());
    pad(&bytes);
    set(&bytes, 44, 4, crc_of(bytes, page_size(), bytes.size()));
    seal_page(&bytes, 0, 16);

    std::string index("INDX\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    set(&index, 8, 8, extents_.size());
    uint64_t stored_pages = 0;
    for (const Extent& extent : extents_) {
      const uint64_t head = bytes.size();
      bytes += extent.head + extent.data;
      pad(&bytes);
      set(&bytes, head + 40, 8, head);
      set(&bytes, head + 28, 4, crc_of(bytes, head + page_size(), bytes.size()));
      seal_page(&bytes, head, 4);
      index += bytes.substr(head + 8, 8) + bytes.substr(head + 40, 8) + bytes.substr(head + 32, 8) +
               bytes.substr(head + 16, 12) + bytes.substr(head + 4, 4);
      stored_pages += number(bytes, head + 20, 4);
      bytes.append(extent.gap, '\0');
    }
    pad(&index);

    const uint64_t index_offset = bytes.size();
    bytes += index;
    const uint64_t trailer = bytes.size();
    bytes += end_;
    set(&bytes, trailer + 8, 8, index_offset);
    set(&bytes, trailer + 16, 8, extents_.size());
    set(&bytes, trailer + 24, 8, bytes.size());
    set(&bytes, trailer + 32, 8, stored_pages);
    set(&bytes, trailer + 48, 4, crc_of(bytes, index_offset, trailer));
    set(&bytes, trailer + 52, 4, number(bytes, 16, 4));
    seal_page(&bytes, trailer, 56);
    return bytes;
  }

 private:
  struct Extent {
    std::string head;
    std::string data;
    uint64_t gap = 0;  // bytes between this extent and what follows
  };

  const char* change_extents(Random& random) {
    const size_t i = random.below(extents_.size());
    Extent& extent = extents_[i];
    switch (random.below(7)) {
      case 0:
        extents_.erase(extents_.begin() + i);
        return "an extent dropped";
      case 1: {
        const Extent twin = extent;
        extents_.push_back(twin);
        return "an extent twice";
      }
      case 2:
        std::swap(extents_[i], extents_[random.below(extents_.size())]);
        return "extents out of order";
      case 3:
        extent.gap = page_size();
        return "a gap between extents";
      case 4:
        set(&extent.head, 16, 4, 1 + random.below(1025));
        return "an extent that stands for more or less";
      case 5: {
        std::fill(extent.head.begin() + 64, extent.head.begin() + 192, '\0');
        set(&extent.head, 20, 4, 0);
        if (random.one_in(2)) set(&extent.head, 16, 4, 0);
        store(&extent, random.below(2));
        return "an extent that stores nothing";
      }
      default: {
        set(&extent.head, 24, 4, 1);
        const uint64_t raw_length = number(extent.head, 20, 4) * page_size();
        const uint64_t lengths[] = {0, 1, raw_length - 1, raw_length, random.below(raw_length)};
        store(&extent, lengths[random.below(std::size(lengths))]);
        return "another length of a frame";
      }
    }
  }
  static void store(Extent* extent, uint64_t length) {
    set(&extent->head, 32, 8, length);
    extent->data.assign(length, 'f');
  }

  void add_hook(const std::string& name, const std::string& payload) {
    std::string hook(12, '\0');
    set(&hook, 0, 4, name.size());
    set(&hook, 4, 8, payload.size());
    hooks_.push_back(hook + name + payload);
  }
  static void pad(std::string* bytes) { bytes->resize(align_up(bytes->size(), page_size())); }

  std::string front_;
  std::string usage_;
  std::string restore_id_;
  std::vector<std::string> hooks_;
  std::vector<Extent> extents_;
  std::string end_;
};

}  // namespace

const char* rebuild(const Image& image, Random& random, std::string* bytes) {
  Parts parts(image);
  const char* const what = parts.change(random);
  *bytes = parts.assemble();
  return what;
}

}  // namespace pgalloc::image_driver
