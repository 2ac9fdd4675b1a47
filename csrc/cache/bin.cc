#include "cache/bin.h"

#include <new>

#include "base/reserve.h"

namespace pgalloc::cache {

// A closed file has let go of all pages.
void Bin::give_back(const Holder& holder) try {
  (void)with_reserve([&] {
    return holder.kept ? file_.references().drop_kept(holder.pages())
                       : file_.references().dec_ref(holder.pages());
  });
} catch (const std::bad_alloc&) {
  file_.warn("pages of a Cache could not be given back: no memory is left");
}

}  // namespace pgalloc::cache
