// Purpose: names for clang's thread-safety attributes; other compilers see nothing.
// What each one means: https://clang.llvm.org/docs/ThreadSafetyAnalysis.html
#pragma once

#if defined(__clang__)
#define PGALLOC_ATTRIBUTE(x) __attribute__((x))
#else
#define PGALLOC_ATTRIBUTE(x)
#endif

#define CAPABILITY(x) PGALLOC_ATTRIBUTE(capability(x))
#define SCOPED_CAPABILITY PGALLOC_ATTRIBUTE(scoped_lockable)
#define GUARDED_BY(x) PGALLOC_ATTRIBUTE(guarded_by(x))
#define REQUIRES(...) PGALLOC_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) PGALLOC_ATTRIBUTE(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) PGALLOC_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) PGALLOC_ATTRIBUTE(try_acquire_capability(__VA_ARGS__))
#define RELEASE(...) PGALLOC_ATTRIBUTE(release_capability(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS PGALLOC_ATTRIBUTE(no_thread_safety_analysis)
