// Forks without Python. Each test is a process: a broker stays, and so does what one fork leaves to the next.

#include "sharing/forks.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "file/file_seat.h"
#include "native/sharing.h"
#include "sharing/broker.h"
#include "sharing/peer_file.h"

#if PGALLOC_CHILDREN_HAVE_THREADS

namespace pgalloc::forks_test {
namespace {

using native_tests::allocations_left;
using native_tests::make_file;
using native_tests::take_pages;

// Runs in a process of its own. Its status; -1 for one that was killed.
template <class Run>
pid_t begin_child(Run run) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  allocations_left = -1;
  ::alarm(60);
  native_tests::failures = 0;
  run();
  ::_exit(native_tests::failures == 0 ? 0 : 1);
}
int status_of(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return status;
}
template <class Run>
int in_child(Run run) {
  return status_of(begin_child(run));
}

// The test, in a process of its own.
template <class Run>
void alone(Run run) {
  Forks::install();
  EXPECT_EQ(in_child(run), 0);
}

// Waits until the children's leases are back.
bool no_leases(const MemoryFile& file) {
  for (int i = 0; i < 10000; ++i) {
    if (Broker::instance().leases(file.id()).empty()) return true;
    (void)::poll(nullptr, 0, 1);
  }
  return false;
}

struct Scene {
  Scene() : file(make_file()), seat(file), range(take_pages(*file, 4)) {
    std::memcpy(*file->map(range), "ours", 4);
  }
  bool shows_ours() const {
    return std::memcmp(file->chunks()->address(range.start), "ours", 4) == 0;
  }

  const std::shared_ptr<MemoryFile> file;
  FileSeat seat;
  const FileRange range;
};

TEST(a_child_is_a_peer_of_its_parent_and_so_is_its_child) {
  alone([] {
    Scene scene;
    int go[2];
    EXPECT_EQ(::pipe(go), 0);
    const auto is_peer = [&] {
      EXPECT(scene.seat.owned() == nullptr);
      Pages& pages = scene.seat.pages();
      if (!EXPECT(pages.is_remote())) return;
      EXPECT(pages.inc_ref(scene.range, 0).ok());
      EXPECT(pages.dec_ref(scene.range).ok());
      EXPECT(scene.shows_ours());
    };
    const pid_t child = begin_child([&] {
      char byte = 0;
      EXPECT_EQ(::read(go[0], &byte, 1), 1);
      is_peer();
      EXPECT_EQ(in_child(is_peer), 0);
    });
    const auto leases = Broker::instance().leases(scene.file->id());
    EXPECT_EQ(leases.size(), 1u);
    EXPECT_EQ(leases[0].bytes, scene.range.length());
    EXPECT(scene.file->dec_ref(scene.range).ok());
    EXPECT(scene.file->wait_for_reclaim(std::nullopt));
    const FileRange others = take_pages(*scene.file, 4);
    EXPECT(!others.overlaps(scene.range));
    EXPECT_EQ(::write(go[1], ".", 1), 1);
    EXPECT_EQ(status_of(child), 0);
    EXPECT(no_leases(*scene.file));
    EXPECT_EQ(scene.file->stats().freed_bytes, scene.range.length());
  });
}

ssize_t sendmsg_full(int, const msghdr*, int) { return errno = EAGAIN, -1; }

TEST(a_fork_that_runs_out_of_memory_leaves_leases_or_nothing_to_see) {
  alone([] {
    Scene scene;
    EXPECT_EQ(in_child([] {}), 0);  // starts what stays
    for (int64_t left = 0;; ++left) {
      allocations_left = left;
      const pid_t child = begin_child([&] {
        const bool mapped = scene.file->chunks()->is_mapped(scene.range);
        if (scene.seat.orphaned()) {
          EXPECT_EQ(mapped, scene.seat.guard() != nullptr);
        } else {
          EXPECT(mapped);
        }
        if (mapped) EXPECT(scene.shows_ours());
      });
      const bool failed = allocations_left < 0;
      allocations_left = -1;
      const int status = status_of(child);
      // A child that has no memory even for a broker of its own ends.
      EXPECT(status == 0 || WTERMSIG(status) == SIGABRT);
      if (!EXPECT(no_leases(*scene.file))) return;
      EXPECT(*scene.file->has_unique_ref(scene.range));
      if (!failed) break;
    }
    EXPECT_EQ(Broker::instance().verify(), std::nullopt);
    EXPECT_EQ(scene.file->verify(), std::nullopt);
  });
}

TEST(a_childs_child_sees_pages_through_leases_that_have_no_file_either) {
  alone([] {
    Forks::ask_max = std::chrono::milliseconds(100);
    Scene scene;
    EXPECT_EQ(in_child([] {}), 0);  // starts what stays
    constexpr int kFound = 7;
    int status = 0;
    for (int64_t left = 0; left < 1000 && status != kFound; ++left) {
      allocations_left = left;  // so that a child gets leases, and no file
      const pid_t child = begin_child([&] {
        if (scene.seat.guard() == nullptr) return;
        const auto link = std::static_pointer_cast<OwnerLink>(scene.seat.guard());
        EXPECT_EQ(in_child([&] {
                    EXPECT(scene.seat.orphaned());
                    EXPECT(scene.seat.guard() != nullptr && scene.seat.guard() != link);
                    EXPECT(scene.shows_ours());
                  }),
                  0);
        native_tests::FakeKernel kernel;
        kernel.calls.sendmsg = sendmsg_full;
        kernel.begin();
        EXPECT_EQ(in_child([&] {
                    EXPECT(scene.seat.guard() == nullptr);
                    EXPECT(!scene.file->chunks()->is_mapped(scene.range));
                  }),
                  0);
        link->break_off();
        EXPECT_EQ(in_child([&] {
                    EXPECT(scene.seat.guard() == nullptr);
                    EXPECT(!scene.file->chunks()->is_mapped(scene.range));  // their owner lives
                  }),
                  0);
        if (native_tests::failures == 0) ::_exit(kFound);
      });
      allocations_left = -1;
      const int ended = status_of(child);
      status = WIFEXITED(ended) ? WEXITSTATUS(ended) : 0;
      if (status == 1) break;
    }
    EXPECT_EQ(status, kFound);
    EXPECT(no_leases(*scene.file));
  });
}

#if PGALLOC_CHILDREN_ALLOCATE
TEST(threads_fork_while_others_allocate) {
  alone([] {
    Scene scene;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        while (!stop) {
          const FileRange range = take_pages(*scene.file, 2);
          EXPECT(scene.file->dec_ref(range).ok());
          EXPECT(scene.file->wait_for_reclaim(std::nullopt));
        }
      });
    }
    std::vector<std::thread> forking;
    for (int i = 0; i < 3; ++i) {
      forking.emplace_back([&] {
        for (int number = 0; number < 30; ++number) {
          EXPECT_EQ(in_child([&] {
                      EXPECT(scene.seat.pages().is_remote());
                      EXPECT(scene.shows_ours());
                      const auto file = make_file();
                      EXPECT(file->dec_ref(take_pages(*file, 1)).ok());
                      EXPECT(file->wait_for_reclaim(std::nullopt));
                    }),
                    0);
        }
      });
    }
    for (std::thread& thread : forking) thread.join();
    stop = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT(no_leases(*scene.file));
    EXPECT(*scene.file->has_unique_ref(scene.range));
    EXPECT_EQ(scene.file->verify(), std::nullopt);
  });
}
#endif

TEST(an_owner_that_does_not_answer_costs_its_own_files_only) {
  alone([] {
    Forks::ask_max = std::chrono::milliseconds(100);
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    const auto link = std::move(*OwnerLink::create(pair[0]));
    const auto theirs = make_file();
    const auto peer = std::move(*PeerFile::create(theirs->fd(), {1, kChunkSize, false}, link));
    FileSeat remote{std::shared_ptr<Pages>(peer)};
    const FileRange range = take_pages(*theirs, 1);
    EXPECT(peer->adopt(range).ok());
    EXPECT(peer->map(range).ok());
    Scene scene;
    EXPECT_EQ(in_child([&] {
                EXPECT(remote.orphaned());
                EXPECT(!peer->chunks()->is_mapped(range));
                EXPECT(scene.seat.pages().is_remote());
                EXPECT(scene.shows_ours());
              }),
              0);
    // Its answer comes too late, and what it would bring is not lost: the parent goes on.
    EXPECT(peer->holds(range));
    ::close(pair[1]);
    EXPECT_EQ(in_child([&] { EXPECT(!peer->chunks()->is_mapped(range)); }), 0);  // it lives on
  });
}

constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, which older headers lack
pid_t other_end = 0;
int getsockopt_of_other_end(int fd, int name, void* value, socklen_t* size) {
  if (name == kPeerPidfd) return errno = ENOPROTOOPT, -1;
  const int result = os::kernel().getsockopt(fd, name, value, size);
  if (name == SO_PEERCRED) static_cast<ucred*>(value)->pid = other_end;
  return result;
}

TEST(what_a_process_lent_that_has_ended_is_seen_by_children_that_come_later) {
  alone([] {
    other_end = begin_child([] { ::pause(); });
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    native_tests::FakeKernel kernel;
    kernel.calls.getsockopt = getsockopt_of_other_end;
    kernel.begin();
    const auto link = std::move(*OwnerLink::create(pair[0]));
    const auto theirs = make_file();
    const auto peer = std::move(*PeerFile::create(theirs->fd(), {1, kChunkSize, false}, link));
    FileSeat remote{std::shared_ptr<Pages>(peer)};
    const FileRange range = take_pages(*theirs, 1);
    EXPECT(peer->adopt(range).ok());
    EXPECT(peer->map(range).ok());
    link->break_off();
    EXPECT_EQ(in_child([&] { EXPECT(!peer->chunks()->is_mapped(range)); }), 0);
    // It closes its connections first, and has ended a moment later.
    std::thread killer([] {
      ::usleep(20000);  // time: so that the child looks before
      ::kill(other_end, SIGKILL);
    });
    EXPECT_EQ(in_child([&] { EXPECT(peer->chunks()->is_mapped(range)); }), 0);
    killer.join();
    (void)status_of(other_end);
    EXPECT_EQ(in_child([&] { EXPECT(peer->chunks()->is_mapped(range)); }), 0);
    EXPECT(link->owner_has_ended());
    other_end = ::getpid();  // its number is another's now
    EXPECT(link->owner_has_ended());
    ::close(pair[1]);
  });
}

TEST(parking_nests_and_a_child_begins_anew) {
  alone([] {
    Scene scene;
    EXPECT(Broker::instance().address().ok());
    Forks::park_threads();
    Forks::park_threads();
    EXPECT_EQ(native_tests::threads_of_process(), 1u);
    EXPECT_EQ(in_child([&] {
                const auto own = make_file();
                EXPECT_EQ(native_tests::threads_of_process(), 2u);
                EXPECT(own->dec_ref(take_pages(*own, 1)).ok());
                EXPECT(own->wait_for_reclaim(std::nullopt));
                EXPECT(scene.seat.pages().dec_ref(scene.range).ok());
                EXPECT_EQ(native_tests::threads_of_process(), 3u);  // a link's, to give it back
              }),
              0);
    Forks::resume_threads();
    EXPECT_EQ(native_tests::threads_of_process(), 1u);
    Forks::resume_threads();
    EXPECT_EQ(native_tests::threads_of_process(), 3u);
    Forks::resume_threads();  // once too often
    EXPECT(no_leases(*scene.file));
  });
}

TEST(a_child_has_its_parents_handles_one_by_one) {
  alone([] {
    Scene scene;
    const FileRange part{scene.range.start, scene.range.start + page_size()};
    EXPECT(scene.file->inc_ref(part, 0).ok());
    const FileRange unpinned = take_pages(*scene.file, 1);
    Discardable entry;
    entry.range = unpinned;
    EXPECT(scene.file->unpin(entry).ok());
    EXPECT_EQ(in_child([&] {
                Pages& pages = scene.seat.pages();
                EXPECT(!*pages.has_unique_ref(scene.range));
                EXPECT(*pages.has_unique_ref({part.end, scene.range.end}));
                EXPECT(pages.dec_ref(scene.range).ok());
                EXPECT(scene.shows_ours());
                EXPECT(pages.dec_ref(part).ok());
                EXPECT(!pages.dec_ref(part).ok());
                EXPECT(!pages.dec_ref(unpinned).ok());  // the parent's alone
              }),
              0);
    EXPECT(no_leases(*scene.file));
    EXPECT(!*scene.file->has_unique_ref(part));
    EXPECT(*scene.file->has_unique_ref({part.end, scene.range.end}));
    EXPECT(scene.file->end_handle(entry).ok());
  });
}

TEST(a_closed_file_is_not_lent_and_others_are) {
  alone([] {
    Scene closed;
    Scene scene;
    EXPECT(closed.file->close().ok());
    EXPECT_EQ(in_child([&] {
                EXPECT(closed.seat.orphaned());
                EXPECT(closed.shows_ours());  // its pages have no owner any more
                EXPECT(scene.seat.pages().is_remote());
                EXPECT(scene.shows_ours());
                EXPECT_EQ(Forks::take_born_links().size(), 1u);
                EXPECT(Forks::take_born_links().empty());
              }),
              0);
    EXPECT(Forks::take_born_links().empty());
    EXPECT(no_leases(*scene.file));
  });
}

TEST(without_files_a_child_is_no_peer) {
  alone([] {
    EXPECT_EQ(in_child([] { EXPECT(Forks::take_born_links().empty()); }), 0);
    EXPECT_EQ(Broker::instance().figures().channels, 0u);
    EXPECT_EQ(Broker::instance().figures().listeners, 0u);
  });
}

int refused = 0;
int socketpair_refused(int*) { return errno = refused, -1; }
int pass_credentials_refused(int) { return errno = refused, -1; }
int listen_at_refused(const char*, size_t) { return errno = refused, -1; }

TEST(without_a_connection_a_child_sees_nothing_that_others_may_get) {
  alone([] {
    refused = EMFILE;
    for (int part = 0; part < 3; ++part) {
      Scene scene;
      native_tests::FakeKernel kernel;
      if (part == 0) kernel.calls.listen_at = listen_at_refused;
      if (part == 1) kernel.calls.socketpair = socketpair_refused;
      if (part == 2) kernel.calls.pass_credentials = pass_credentials_refused;
      kernel.begin();
      EXPECT_EQ(in_child([&] {
                  EXPECT(scene.seat.orphaned());
                  EXPECT(scene.seat.guard() == nullptr);
                  EXPECT(!scene.file->chunks()->is_mapped(scene.range));
                  EXPECT(Forks::take_born_links().empty());
                }),
                0);
      EXPECT(*scene.file->has_unique_ref(scene.range));
      EXPECT(Broker::instance().leases(scene.file->id()).empty());
      EXPECT(scene.file->dec_ref(take_pages(*scene.file, 1)).ok());  // the parent goes on
    }
  });
}

TEST(a_childs_address_of_its_parent_is_the_brokers) {
  alone([] {
    Scene scene;
    const auto address = Broker::instance().address();
    const pid_t parent = ::getpid();
    EXPECT_EQ(in_child([&] {
                const auto links = Forks::take_born_links();
                if (!EXPECT_EQ(links.size(), 1u)) return;
                const OwnerLink::Owner owner = links[0]->owner();
                EXPECT_EQ(owner.pid, parent);
                EXPECT_EQ(owner.name, address->name);
                EXPECT_EQ(owner.path, address->path);
                EXPECT_EQ(owner.secret, address->secret);
                EXPECT_EQ(owner.uid, ::geteuid());
              }),
              0);
    EXPECT(no_leases(*scene.file));
  });
}

}  // namespace
}  // namespace pgalloc::forks_test

#endif
