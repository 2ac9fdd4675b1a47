// Touches guarded data without its lock: clang's thread-safety analysis must say so.
#include "base/mutex.h"

class Counter {
 public:
  void count() { ++value_; }

 private:
  pgalloc::Mutex mu_{pgalloc::LockRank::kLedger};
  int value_ GUARDED_BY(mu_) = 0;
};

int main() { Counter().count(); }
