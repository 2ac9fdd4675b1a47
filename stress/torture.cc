// Purpose: shows that no page is shared, lost or dirty while many threads do everything at once,
// and that the account is exact and the kernel has all its memory back at the end.
//
//   torture [--seconds N] [--operations N] [--threads N] [--seed S] [--bytes-max B]
//   torture --plant shared|lost|dirty|epoch     the same with a planted bug: must exit with 1
//
// The run is cut into rounds. In a round, workers and watchers work; between rounds they rest, and
// the audit compares what the allocator believes with what they hold and what the kernel stores.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string_view>
#include <thread>
#include <vector>

#include "file/memory_file.h"
#include "torture/audit.h"
#include "torture/mailbox.h"
#include "torture/shelf.h"
#include "torture/source.h"
#include "torture/verdict.h"
#include "torture/watchers.h"
#include "torture/worker.h"

namespace pgalloc::torture {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Options {
  uint64_t seconds = 60;
  uint64_t operations = UINT64_MAX;
  uint64_t threads = 8;
  uint64_t seed = 1;
  uint64_t bytes_max = uint64_t{1} << 30;
  Plant plant = Plant::kNone;
};

constexpr int kEvictionThreads = 2;
constexpr uint64_t kRoundsByOperations = 4;
constexpr std::chrono::seconds kRoundTime{3};

class Run {
 public:
  Run(MemoryFile& file, const Options& options)
      : file_(file), options_(options), source_(file, options.plant), mailboxes_(options.threads) {
    const Arena arena{file_, source_, shelf_, mailboxes_, options.bytes_max / options.threads};
    for (uint64_t i = 0; i < options.threads; ++i) {
      workers_.emplace_back(arena, static_cast<uint8_t>(i), options.seed * 1000 + i);
    }
  }

  void all_rounds() {
    const auto end = SteadyClock::now() + std::chrono::seconds(options_.seconds);
    const uint64_t share = std::max<uint64_t>(options_.operations / options_.threads, 1);
    uint64_t left = share;
    while (left > 0 && SteadyClock::now() < end) {
      const uint64_t operations =
          options_.operations == UINT64_MAX
              ? UINT64_MAX
              : std::min(left, std::max<uint64_t>(share / kRoundsByOperations, 1));
      round(std::min(end, SteadyClock::now() + kRoundTime), operations);
      if (options_.operations != UINT64_MAX) left -= operations;
      audit_at_rest(file_, holdings());
    }
  }

  void finish() {
    file_.evictables()->start_all();
    file_.evictables()->resume();
    std::thread evictions([this] { shelf_.run_evictions(); });
    for (Worker& worker : workers_) worker.free_all();
    if (!file_.evictables()->wait_until_idle(std::nullopt)) fail("evictions do not end");
    file_.evictables()->pause();
    evictions.join();
    if (!shelf_.contents().empty()) fail("marked evictable, and never evicted");
    audit_at_the_end(file_);
  }

  void print() const {
    Counts counts;
    for (const Worker& worker : workers_) counts.add(worker.counts());
    const MemoryFileStats stats = file_.stats();
    const auto line = [](const char* what, uint64_t count) {
      std::printf("  %-28s %12" PRIu64 "\n", what, count);
    };
    std::printf("ok: no page shared, lost or dirty; the kernel has everything back\n");
    line("rounds", rounds_);
    line("operations", counts.operations);
    line("allocations", counts.allocations);
    line("refused (out of memory)", counts.refusals);
    line("pages stamped", counts.pages_stamped);
    line("pages left blank", counts.pages_left_blank);
    line("pages checked", counts.pages_checked);
    line("parts shared", counts.shared);
    line("passed on", counts.passed_on);
    line("decommits", counts.decommits);
    line("marked evictable", counts.shelved);
    line("evicted", shelf_.evicted());
    line("punches", stats.punches);
    line("huge allocations", stats.huge_allocations);
    line("recycled pages", stats.recycled_bytes / page_size());
    line("scans", stats.scans);
    line("voided scan results", stats.voided_results);
  }

 private:
  void round(SteadyClock::time_point until, uint64_t operations) {
    ++rounds_;
    std::atomic<bool> stop{false};
    std::vector<std::thread> workers;
    std::vector<std::thread> others;
    file_.evictables()->resume();
    for (int i = 0; i < kEvictionThreads; ++i) others.emplace_back([&] { shelf_.run_evictions(); });
    others.emplace_back([&] { watch_usage(file_, stop); });
    others.emplace_back([&] { watch_invariants(file_, stop); });
    for (Worker& worker : workers_) workers.emplace_back([&] { worker.run(until, operations); });
    for (std::thread& worker : workers) worker.join();
    stop = true;
    file_.evictables()->pause();
    for (std::thread& other : others) other.join();
  }

  std::vector<Holding> holdings() const {
    std::vector<Holding> all = shelf_.contents();
    const auto append = [&](const std::vector<Holding>& some) {
      all.insert(all.end(), some.begin(), some.end());
    };
    for (const Worker& worker : workers_) append(worker.pool());
    for (const Mailbox& mailbox : mailboxes_) append(mailbox.contents());
    return all;
  }

  MemoryFile& file_;
  const Options options_;
  Source source_;
  Shelf shelf_{file_, source_};
  std::vector<Mailbox> mailboxes_;
  std::deque<Worker> workers_;
  uint64_t rounds_ = 0;
};

int torture(const Options& options) {
  install(options.plant);
  // Room for holes, and a limit so tight that allocations wait for the reclaimer or are refused.
  const uint64_t limit = align_down(options.bytes_max - options.bytes_max / 8, page_size());
  const auto file = MemoryFile::create({}, {.capacity = align_up(8 * options.bytes_max, kChunkSize),
                                            .max_allocatable_bytes = limit});
  if (!file.ok()) expect_ok(file.status(), "create");
  {
    Run run(**file, options);
    run.all_rounds();
    run.finish();
    run.print();
  }
  expect_ok((*file)->close(), "close");
  if (options.plant != Plant::kNone) std::printf("the planted bug was not found\n");
  return 0;
}

int usage(const char* program) {
  std::fprintf(stderr,
               "usage: %s [--seconds N] [--operations N] [--threads 1-64] [--seed S] "
               "[--bytes-max B] [--plant shared|lost|dirty|epoch]\n",
               program);
  return 2;
}

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (i + 1 == argc) return usage(argv[0]);
    const uint64_t number = std::strtoull(argv[i + 1], nullptr, 10);
    if (option == "--seconds") {
      options.seconds = number;
    } else if (option == "--operations") {
      options.operations = number;
    } else if (option == "--threads") {
      options.threads = number;
    } else if (option == "--seed") {
      options.seed = number;
    } else if (option == "--bytes-max") {
      options.bytes_max = number;
    } else if (const auto plant = plant_by_name(argv[i + 1]); option == "--plant" && plant) {
      options.plant = *plant;
    } else {
      return usage(argv[0]);
    }
  }
  constexpr uint64_t kSmallest = uint64_t{1} << 20;
  if (options.threads < 1 || options.threads > 64 || options.bytes_max < kSmallest) {
    return usage(argv[0]);
  }
  return torture(options);
}

}  // namespace
}  // namespace pgalloc::torture

int main(int argc, char** argv) { return pgalloc::torture::main(argc, argv); }
