#include "cache/bin.h"

#include <new>

#include "base/reserve.h"

namespace pgalloc::cache {

Leavings::~Leavings() {
  give_back(nullptr);
  if (empty()) return;
  for (Holder* next = first_; next != nullptr;) {
    const std::unique_ptr<Holder> holder(std::exchange(next, next->next_gone));
  }
  try {
    file_.warn("pages of a Cache could not be given back: no memory is left");
  } catch (const std::bad_alloc&) {  // NOLINT: the file has them until it is closed
  }
}

void Leavings::give_back(Holder* first) {
  for (Holder* next : {first, first_.exchange(nullptr)}) {
    while (next != nullptr) {
      std::unique_ptr<Holder> holder(std::exchange(next, next->next_gone));
      if (try_to_give_back(*holder)) continue;
      Holder* const left = holder.release();
      left->next_gone = first_;
      while (!first_.compare_exchange_weak(left->next_gone, left)) {
      }
    }
  }
}

bool Leavings::try_to_give_back(const Holder& holder) try {
  // A file that is closed has let go of all pages.
  (void)with_reserve([&] {
    return holder.kept ? file_.references().drop_kept(holder.pages())
                       : file_.references().dec_ref(holder.pages());
  });
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

}  // namespace pgalloc::cache
