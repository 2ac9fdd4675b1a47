// Purpose: get and put of a cache. The GIL is kept where the work is small, and let go of where values are long or the
// guard may have to make room.
#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "base/reserve.h"
#include "binding/cache_object.h"
#include "binding/file_handle.h"
#include "binding/without_gil.h"
#include "cache/sizes.h"
#include "guard/commit_gate.h"
#include "sharing/broker.h"

namespace pgalloc::binding {

using cache::Item;
using cache::Store;

namespace {

// A buffer that is read; bytes need none.
class Data {
 public:
  Data() = default;
  ~Data() {
    if (held_) PyBuffer_Release(&buffer_);
  }
  Data(const Data&) = delete;
  Data& operator=(const Data&) = delete;

  // False with an exception set.
  bool get(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
      bytes_ = {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
      return true;
    }
    if (PyObject_GetBuffer(object, &buffer_, PyBUF_SIMPLE) != 0) return false;
    held_ = true;
    bytes_ = {static_cast<const char*>(buffer_.buf), static_cast<size_t>(buffer_.len)};
    return true;
  }
  std::string_view bytes() const { return bytes_; }
  // Whether reading them may have to wait for others: they may be any memory.
  bool is_foreign() const { return held_; }

 private:
  Py_buffer buffer_;
  bool held_ = false;
  std::string_view bytes_;
};

// New pages, once there is room for so much. Without the GIL.
Result<FileRange> allocate(MemoryFile& file, const AllocateRequest& request, uint64_t index_bytes) {
  Broker::start_if_it_lacks_its_thread();  // no other call may come
  const WithoutGil release;
  CommitReservation reservation;
  PGALLOC_RETURN_IF_ERROR(commit_gate().reserve(request.length + index_bytes, reservation));
  return file.allocate(request, /*may_wait=*/true);
}

// Pages that are given back unless they become the store's.
class NewPages {
 public:
  NewPages(MemoryFile& file, FileRange range) : file_(file), range_(range) {}
  ~NewPages() {
    if (!owned_) return;
    try {
      (void)with_reserve([&] { return file_.dec_ref(range_); });
    } catch (const std::bad_alloc&) {  // NOLINT: the file has them until it is closed
    }
  }
  NewPages(const NewPages&) = delete;
  NewPages& operator=(const NewPages&) = delete;

  void release() { owned_ = false; }

 private:
  MemoryFile& file_;
  const FileRange range_;
  bool owned_ = true;
};

bool put_small(CacheObject* self, const Item& item, std::string_view data) {
  const std::shared_ptr<Store> store = self->store;
  // Room for the index was made for with the slab, but not for a key as long as this.
  CommitReservation reservation;
  if (item.key.size() > page_size()) {
    Status status;
    {
      const WithoutGil release;
      status = commit_gate().reserve(store->index_bytes_of(item), reservation);
    }
    if (!status.ok()) return set_error(status) != nullptr;
  }
  while (true) {
    const Result<bool> done = store->put_small(item, data);
    if (!done.ok()) return set_error(done.status()) != nullptr;
    if (*done) return true;
    const uint64_t bytes = cache::slab_bytes_for(data.size());
    const uint32_t slot_bytes = cache::slot_bytes_for(data.size());
    // Committed, so that what is written there cannot fail; with the index of all values to come.
    const Result<FileRange> pages = allocate(
        store->file(), {.length = bytes, .mode = AllocationMode::kAllocateAndCommit},
        bytes / slot_bytes * store->index_bytes_of(item));
    if (!pages.ok()) {
      return set_file_error(pages.status(), "allocate", self->memory_file) != nullptr;
    }
    NewPages owned(store->file(), *pages);
    const Result<char*> mapped = store->file().map(*pages);
    const Status status = mapped.ok() ? store->add_slab(item, *pages, slot_bytes) : mapped.status().clone();
    if (!status.ok()) return set_error(status) != nullptr;
    owned.release();
  }
}

// Copies the data into new pages, with zeros behind it.
Status write(MemoryFile& file, FileRange pages, std::string_view data) {
  // From here on the kernel copies, without the GIL and without page faults.
  constexpr uint64_t kByKernel = 16384;
  const Result<char*> address = file.map(pages);
  if (!address.ok()) return address.status().clone();
  if (data.size() < kByKernel) {
    std::memcpy(*address, data.data(), data.size());
  } else {
    const WithoutGil release;
    PGALLOC_RETURN_IF_ERROR(file.write(pages.start, data.data(), data.size()));
  }
  std::memset(*address + data.size(), 0, pages.length() - data.size());
  return {};
}

bool put_pages(CacheObject* self, const Item& item, std::string_view data) {
  const std::shared_ptr<Store> store = self->store;
  MemoryFile& file = store->file();
  const Result<FileRange> pages = allocate(file,
                                           {.length = cache::pages_for(data.size()),
                                            .will_be_overwritten = true,
                                            .huge = HugeWish::kIfUseful},
                                           store->index_bytes_of(item));
  if (!pages.ok()) {
    return set_file_error(pages.status(), "allocate", self->memory_file) != nullptr;
  }
  NewPages owned(file, *pages);
  Status status = write(file, *pages, data);
  if (status.ok()) {
    const Result<bool> done = store->put_pages(item, *pages, data.size());
    if (done.ok()) {
      if (*done) owned.release();
      return true;
    }
    status = done.status().clone();
  }
  return set_file_error(status, "write", self->memory_file) != nullptr;
}

// When what is to last so many seconds expires; 0 for ever. False with an exception set.
bool as_expiry(PyObject* seconds, MemoryFile& file, uint64_t* expires_ns) {
  *expires_ns = 0;
  if (seconds == Py_None) return true;
  const double value = PyFloat_AsDouble(seconds);
  if (value == -1.0 && PyErr_Occurred() != nullptr) return false;
  if (!(value < kForEver)) return true;
  *expires_ns = static_cast<uint64_t>(file.clock().now().count()) +
                static_cast<uint64_t>(std::max(value * 1e9, 1.0));
  return true;
}

PyObject* look(PyObject* object, PyObject* key, Store::Look how) {
  CacheObject* const self = cache_of(object);
  const Status usable = self->store->check_usable();
  if (!usable.ok()) return set_error(usable);
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kError) return nullptr;
  // Of what is no key there is none.
  const auto value =
      self->store->get(encoded == Encoded::kKey ? bytes.view() : std::string_view(), how);
  if (!value) Py_RETURN_NONE;
  return awaited_view_of(self, *value);
}

}  // namespace

PyObject* awaited_view_of(CacheObject* self, const Store::Value& value) {
  const std::shared_ptr<Store> store = self->store;
  if (store->file().incomplete() &&
      !await_pages(self->memory_file, store->file(), value.pages)) {
    store->let_go(*value.holder);
    return nullptr;
  }
  return view_of(store, value);
}

PyObject* cache_get(PyObject* object, PyObject* key) {
  return look(object, key, Store::Look::kCounted);
}

PyObject* cache_look_again(PyObject* object, PyObject* key) {
  return look(object, key, Store::Look::kUncounted);
}

// put(key, data, seconds, tag, only_if_none): None; what it would count for if that is too much; False for what is no
// key, or no tag.
PyObject* cache_put(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "put() takes key, data, seconds, tag, only_if_none");
    return nullptr;
  }
  KeyBytes key;
  KeyBytes tag;
  Data data;
  Encoded encoded = encode_key(args[0], &key);
  if (encoded == Encoded::kKey && args[3] != Py_None) encoded = encode_key(args[3], &tag);
  if (encoded == Encoded::kNoKey) Py_RETURN_FALSE;
  if (encoded == Encoded::kError || !data.get(args[1])) return nullptr;
  // No Python code from here on.
  CacheObject* const self = cache_of(object);
  const Status usable = self->store->check_usable();
  if (!usable.ok()) return set_error(usable);
  Item item{.key = key.view(), .only_if_none = args[4] == Py_True};
  if (args[3] != Py_None) item.tag = tag.view();
  if (!as_expiry(args[2], self->store->file(), &item.expires_ns)) return nullptr;
  const std::string_view bytes = data.bytes();
  const uint64_t size = self->store->size_of(bytes.size(), item);
  if (self->store->bytes_max() && size > *self->store->bytes_max()) {
    return PyLong_FromUnsignedLongLong(size);
  }
  bool done = false;
  if (!self->store->shares_pages(bytes.size())) {
    done = put_pages(self, item, bytes);
  } else if (data.is_foreign()) {
    // Not read under the store's lock: it may be memory that another thread has to bring.
    done = put_small(self, item, std::string(bytes));
  } else {
    done = put_small(self, item, bytes);
  }
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

}  // namespace pgalloc::binding
