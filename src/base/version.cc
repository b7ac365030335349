#include "lowbit/version.h"

namespace lowbit {

const char* version() { return LOWBIT_VERSION_TEXT; }

}  // namespace lowbit
