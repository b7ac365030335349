// The version of the library, from the file VERSION.
#pragma once

namespace lowbit {

const char* version();  // "0.1.0"

}  // namespace lowbit
