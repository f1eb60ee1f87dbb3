// Emulator interface over the real kernel. A RUN call that starts while the environment variable
// LLAMA_PYNQ_TEST_HANG is set never finishes. Calls run on the caller's thread.
#include <cstdint>
#include <cstdlib>

#include "contract.h"

#define LLAMA_EXPORT extern "C" __attribute__((visibility("default")))

void CallTop(const uint64_t* args);

namespace {
constexpr int kCommandArgument = 6 + 2 * kernel::kKvPorts + kernel::kChannels;
struct Emulator {
  bool hung;
};
}  // namespace

LLAMA_EXPORT void* emulator_new(int) {
  return new Emulator{false};
}

LLAMA_EXPORT int emulator_start(void* emulator, const uint64_t* args) {
  Emulator* self = static_cast<Emulator*>(emulator);
  if (self->hung) return -1;
  self->hung = args[kCommandArgument] == kernel::kCommandRun && std::getenv("LLAMA_PYNQ_TEST_HANG");
  if (!self->hung) CallTop(args);
  return 0;
}

LLAMA_EXPORT int emulator_wait(void* emulator, int) {
  return static_cast<Emulator*>(emulator)->hung ? 0 : 1;
}

LLAMA_EXPORT void emulator_delete(void* emulator) {
  delete static_cast<Emulator*>(emulator);
}
