// Purpose: files of sockets that are there for a moment only, until another name leads to the socket: what
// they are called, and the end of those that killed processes have left.
//
// Thread safety: any thread.
//
// Invariant: what is removed is a socket of this user's with such a name that is older than a minute.
#pragma once

#include <string>

#include "base/status.h"

namespace pgalloc {

// A name that no other file has.
Result<std::string> name_of_brief_file();

// Removes what was left in a folder. Looks at some thousands of files, and removes 64 of them, at most:
// a few milliseconds. What fails is left to the next process.
void remove_left_files(const std::string& folder);

}  // namespace pgalloc
