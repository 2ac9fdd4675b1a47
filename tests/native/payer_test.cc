// Whose memory limit a peer's pages count against, in folders that only look like /proc.

#include "sharing/payer.h"

#include "native/payers.h"
#include "native/support.h"

namespace pgalloc::payer_test {
namespace {

using native_tests::Payers;

TEST(a_process_in_another_memory_group_pays_there) {
  const Payers payers("7:cpu:/x\n4:memory:/ours\n0::/all\n");
  payers.write(12, "7:cpu:/x\n4:memory:/theirs\n0::/all\n");
  payers.write(13, "7:cpu:/y\n4:memory:/ours\n0::/other\n");
  EXPECT_EQ(payer_of(12, 1), "/theirs");
  EXPECT_EQ(payer_of(13, 1), "");
}

TEST(in_v2_it_is_the_one_group_there_is) {
  const Payers payers("0::/ours\n");
  payers.write(12, "0::/ours\n");
  payers.write(13, "0::/ours/below\n");
  EXPECT_EQ(payer_of(12, 1), "");
  EXPECT_EQ(payer_of(13, 1), "/ours/below");
}

TEST(without_a_memory_controller_all_pay_together) {
  const Payers payers("7:cpu:/x\n");
  payers.write(12, "7:cpu:/y\n");
  EXPECT_EQ(payer_of(12, 1), "");
}

TEST(a_process_that_cannot_be_seen_pays_alone) {
  const Payers payers("0::/ours\n");
  for (const pid_t pid : {0, -1, 14}) {
    EXPECT_EQ(payer_of(pid, 1), payer_of(pid, 1));
    EXPECT(payer_of(pid, 1) != payer_of(pid, 2));
    EXPECT(!payer_of(pid, 1).empty());
  }
}

}  // namespace
}  // namespace pgalloc::payer_test
