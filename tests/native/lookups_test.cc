// Questions to Python and their answers, without Python.

#include "sharing/lookups.h"

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

}  // namespace
}  // namespace pgalloc::lookups_test
