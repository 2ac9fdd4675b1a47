// Purpose: the list of what can be measured; each family has a file of its own.
#pragma once

namespace pgalloc::benchmarks {

// placing.cc: finding a place, and giving it back
void pair();
void two_threads();
void sequence();
void every_second();
void fragmented_top_down();
void fragmented_bottom_up();
void misaligned_1k();
void misaligned_4k();
void misaligned_16k();

// access.cc: references and addresses
void references();
void references_8192();
void map();

// memory.cc: where the kernel does most of the work
void populate();
void commit();
void free_populate();
void give_back();

// account.cc: knowing what is committed; asking for memory back
void update_usage();
void evictables();

}  // namespace pgalloc::benchmarks
