// Questions to Python and their answers, without Python.

#include "sharing/lookups.h"

#include <new>
#include <string>
#include <thread>

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::lookups_test {
namespace {

using native_tests::make_file;
using native_tests::take_pages;

struct Scene {
  Scene() : lookups([this] { ++told; }), file(make_file()), range(take_pages(*file, 1)) {}
  ~Scene() {
    EXPECT(*file->has_unique_ref(range));
    EXPECT(file->dec_ref(range).ok());
  }
  Lookups::Found value() {
    EXPECT(file->references().lease_anew(range).ok());
    return Lookups::Found(Lookups::Value{file, range, 1, 2});
  }
  void drop_lease() { EXPECT(file->references().drop_lease(range).ok()); }

  int told = 0;
  Lookups lookups;
  std::shared_ptr<MemoryFile> file;
  FileRange range;
  std::vector<std::shared_ptr<MemoryFile>> let_go;
};

TEST(a_question_is_answered_once_and_its_answer_taken_once) {
  Scene scene;
  const uint64_t number = scene.lookups.ask("key");
  EXPECT(!scene.lookups.take_answer(number));
  const auto event = scene.lookups.next();
  EXPECT(event->look_up);
  EXPECT_EQ(event->number, number);
  EXPECT_EQ(event->key, "key");
  Lookups::Found found = scene.value();
  EXPECT(scene.lookups.answer(number, found));
  EXPECT_EQ(scene.told, 1);
  Lookups::Found nothing(std::nullopt);
  EXPECT(!scene.lookups.answer(number, nothing));
  EXPECT(scene.lookups.take_answer(number).has_value());
  EXPECT(!scene.lookups.take_answer(number));
  EXPECT(!scene.lookups.answer(number, nothing));
  scene.drop_lease();
}

TEST(a_key_that_is_too_long_is_refused_and_python_is_not_asked) {
  Scene scene;
  const uint64_t too_long = scene.lookups.ask(std::string(Lookups::kKeyBytesMax + 1, 'k'));
  const uint64_t longest = scene.lookups.ask(std::string(Lookups::kKeyBytesMax, 'k'));
  const auto refused = scene.lookups.take_answer(too_long);
  EXPECT(refused.has_value());
  EXPECT(refused->status().code() == ErrorCode::kSharing);
  scene.lookups.drop(too_long, &scene.let_go);
  EXPECT_EQ(scene.lookups.posted(), uint64_t{1});
  EXPECT_EQ(scene.lookups.next()->number, longest);
}

TEST(a_question_without_memory_for_an_answer_fails_alone) {
  Scene scene;
  const uint64_t number = scene.lookups.ask("key");
  (void)scene.lookups.next();
  scene.lookups.fail(number + 1);
  scene.lookups.fail(number);
  EXPECT_EQ(scene.told, 1);
  Lookups::Found nothing(std::nullopt);
  EXPECT(!scene.lookups.answer(number, nothing));
  bool failed = false;
  try {
    (void)scene.lookups.take_answer(number);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  EXPECT(failed);
  scene.lookups.drop(number, &scene.let_go);
  EXPECT(!scene.lookups.next()->look_up);
  scene.lookups.fail(number);  // it is gone
}

TEST(what_is_put_back_is_given_again) {
  Scene scene;
  const uint64_t number = scene.lookups.ask("key");
  (void)scene.lookups.next();
  scene.lookups.drop(number, &scene.let_go);
  for (int i = 0; i < 3; ++i) {
    const auto event = scene.lookups.next();
    EXPECT(!event->look_up);
    EXPECT_EQ(event->number, number);
    EXPECT(!scene.lookups.done(scene.lookups.posted()));
    if (i < 2) scene.lookups.put_back();
  }
  scene.lookups.stop();
  EXPECT(!scene.lookups.next());
  EXPECT(scene.lookups.done(scene.lookups.posted()));
}

TEST(python_is_told_to_drop_what_it_keeps) {
  Scene scene;
  const uint64_t number = scene.lookups.ask("key");
  (void)scene.lookups.next();
  Lookups::Found found = scene.value();
  EXPECT(scene.lookups.answer(number, found));
  scene.lookups.drop(number, &scene.let_go);  // with the lease of the answer
  const uint64_t posted = scene.lookups.posted();
  EXPECT(!scene.lookups.done(posted));
  const auto event = scene.lookups.next();
  EXPECT(!event->look_up);
  EXPECT_EQ(event->number, number);
  EXPECT(!scene.lookups.done(posted));  // it is being dropped
  scene.lookups.stop();
  EXPECT(!scene.lookups.next());
  EXPECT(scene.lookups.done(posted));
  scene.lookups.drop(number, &scene.let_go);  // once
  EXPECT_EQ(scene.lookups.posted(), posted);
}

TEST(who_waits_learns_that_no_answer_comes) {
  Scene scene;
  const uint64_t before = scene.lookups.ask("key");
  std::thread python([&] {
    while (scene.lookups.next()) {
    }
  });
  scene.lookups.close();
  python.join();
  const uint64_t after = scene.lookups.ask("key");
  for (const uint64_t number : {before, after}) {
    const auto answer = scene.lookups.take_answer(number);
    EXPECT_EQ(answer->status().code(), ErrorCode::kClosed);
    scene.lookups.drop(number, &scene.let_go);
  }
  Lookups::Found found(std::nullopt);
  EXPECT(!scene.lookups.answer(before, found));
}

TEST(answers_that_were_not_taken_go_with_it) {
  Scene scene;
  Lookups other([] {});
  const uint64_t number = other.ask("key");
  Lookups::Found found = scene.value();
  EXPECT(other.answer(number, found));
}

TEST(memory_that_runs_out_asks_nothing) {
  Scene scene;
  const std::string key(100, 'k');
  uint64_t number = 0;
  native_tests::fail_each_allocation([&] { number = scene.lookups.ask(key); },
                                     [&] { EXPECT_EQ(scene.lookups.posted(), 0u); });
  native_tests::all_fail = true;
  scene.lookups.drop(number, &scene.let_go);  // needs none
  native_tests::all_fail = false;
  EXPECT(scene.lookups.next()->look_up);
  EXPECT(!scene.lookups.next()->look_up);
}

TEST(numbers_are_given_once_and_those_that_were_never_given_say_nothing) {
  Scene scene;
  const uint64_t first = scene.lookups.ask("a");
  const uint64_t second = scene.lookups.ask("b");
  EXPECT(first != 0);  // which stands for none
  EXPECT(second != first);
  EXPECT_EQ(scene.lookups.posted(), 2u);
  EXPECT(!scene.lookups.take_answer(second + 1));
  scene.lookups.drop(second + 1, &scene.let_go);
  Lookups::Found nothing(std::nullopt);
  EXPECT(!scene.lookups.answer(second + 1, nothing));
  EXPECT_EQ(scene.lookups.posted(), 2u);
  EXPECT_EQ(scene.told, 0);
  scene.lookups.drop(first, &scene.let_go);
  EXPECT(!scene.lookups.take_answer(first));
  EXPECT(!scene.lookups.answer(first, nothing));
  EXPECT(scene.let_go.empty());  // there was no answer
  EXPECT_EQ(scene.lookups.next()->key, "a");
  EXPECT_EQ(scene.lookups.next()->key, "b");
  EXPECT_EQ(scene.lookups.next()->number, first);
}

TEST(what_is_done_is_what_python_has_come_back_from) {
  Scene scene;
  EXPECT(scene.lookups.done(0));
  EXPECT(!scene.lookups.done(1));
  (void)scene.lookups.ask("a");
  (void)scene.lookups.ask("b");
  (void)scene.lookups.next();
  EXPECT(!scene.lookups.done(1));
  (void)scene.lookups.next();
  EXPECT(scene.lookups.done(1));
  EXPECT(!scene.lookups.done(2));
  scene.lookups.stop();
  EXPECT(!scene.lookups.next());
  EXPECT(scene.lookups.done(2));
  EXPECT(!scene.lookups.next());
  EXPECT(!scene.lookups.done(3));
  scene.lookups.close();
  EXPECT(scene.lookups.done(3));  // nothing is waited for any more
}

TEST(those_who_were_sent_home_come_back) {
  Scene scene;
  (void)scene.lookups.ask("key");
  scene.lookups.stop();
  EXPECT(!scene.lookups.next());
  scene.lookups.resume();
  EXPECT_EQ(scene.lookups.next()->key, "key");
  std::thread python([&] { EXPECT(!scene.lookups.next()); });
  scene.lookups.stop();
  python.join();
}

TEST(a_dropped_answer_gives_its_pages_and_file_back) {
  Scene scene;
  for (const bool taken : {false, true}) {
    const uint64_t number = scene.lookups.ask("key");
    Lookups::Found found = scene.value();
    EXPECT(scene.lookups.answer(number, found));
    if (taken) {
      const auto answer = scene.lookups.take_answer(number);
      EXPECT_EQ((**answer)->start, 1u);
      EXPECT_EQ((**answer)->stop, 2u);
      scene.drop_lease();
    }
    scene.let_go.clear();
    scene.lookups.drop(number, &scene.let_go);
    EXPECT_EQ(scene.let_go.size(), taken ? 0u : 1u);
    EXPECT(*scene.file->has_unique_ref(scene.range));
  }
  for (const bool is_error : {false, true}) {
    const uint64_t number = scene.lookups.ask("key");
    Lookups::Found found(std::nullopt);
    if (is_error) found = Lookups::Found(Status::error(ErrorCode::kSharing, "no"));
    EXPECT(scene.lookups.answer(number, found));
    scene.let_go.clear();
    scene.lookups.drop(number, &scene.let_go);
    EXPECT(scene.let_go.empty());
  }
}

TEST(it_is_closed_once_and_asks_nothing_then) {
  Scene scene;
  EXPECT(!scene.lookups.closed());
  (void)scene.lookups.ask("key");
  scene.lookups.close();
  scene.lookups.close();
  EXPECT_EQ(scene.told, 1);
  EXPECT(scene.lookups.closed());
  EXPECT(!scene.lookups.next());
  const uint64_t posted = scene.lookups.posted();
  const uint64_t number = scene.lookups.ask("key");
  scene.lookups.drop(number, &scene.let_go);
  EXPECT_EQ(scene.lookups.posted(), posted);
  EXPECT_EQ(scene.told, 1);
}

TEST(an_answer_that_came_before_the_end_is_taken) {
  Scene scene;
  const uint64_t number = scene.lookups.ask("key");
  Lookups::Found found = scene.value();
  EXPECT(scene.lookups.answer(number, found));
  scene.lookups.close();
  const auto answer = scene.lookups.take_answer(number);
  EXPECT(answer->ok());
  scene.drop_lease();
}

}  // namespace
}  // namespace pgalloc::lookups_test
