// One call of the kernel, through the door that the emulated device uses, against the reference's
// words. For Vitis's C simulation; the tests compile it with g++ as well. The model, the call and
// what should come of it are generated (llama_pynq/vitis/vectors.py).
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

// Memory of the device; `before` and `after` may be null: then it is all `fill`, or not looked at.
struct Buffer {
  const char* name;
  size_t words;
  uint32_t fill;
  const uint32_t* before;
  const uint32_t* after;
};

// A pointer to a buffer, or, where that is negative, a number.
struct Argument {
  int buffer;
  uint64_t value;
};

#include "test_vectors.h"

constexpr size_t kBuffersCount = sizeof(kBuffers) / sizeof(kBuffers[0]);
constexpr size_t kArgumentsCount = sizeof(kArguments) / sizeof(kArguments[0]);
constexpr size_t kMostArguments = 128;  // as in host/emulator.cpp
static_assert(kArgumentsCount <= kMostArguments, "the emulator takes them");
constexpr uintptr_t kPage = 4096;  // where pynq.allocate and XRT put buffers

size_t Differences(const Buffer& buffer, const uint32_t* found) {
  size_t different = 0;
  for (size_t i = 0; i < buffer.words; ++i) {
    if (found[i] == buffer.after[i]) continue;
    if (++different == 1) {
      std::printf("%s[%zu] is 0x%08" PRIx32 ", not 0x%08" PRIx32 "\n", buffer.name, i, found[i],
                  buffer.after[i]);
    }
  }
  std::printf("%s: %zu of %zu words differ\n", buffer.name, different, buffer.words);
  return different;
}

}  // namespace

extern "C" void* emulator_new(int threads);
extern "C" int emulator_start(void* emulator, const uint64_t* args);
extern "C" int emulator_wait(void* emulator, int timeout_us);
extern "C" void emulator_delete(void* emulator);

int main() {
  std::vector<std::vector<uint8_t>> memory;
  std::vector<uint32_t*> at;
  for (const Buffer& buffer : kBuffers) {
    memory.emplace_back(buffer.words * sizeof(uint32_t) + kPage);
    const uintptr_t raw = reinterpret_cast<uintptr_t>(memory.back().data());
    uint32_t* words = reinterpret_cast<uint32_t*>((raw + kPage - 1) / kPage * kPage);
    for (size_t i = 0; i < buffer.words; ++i) {
      words[i] = buffer.before != nullptr ? buffer.before[i] : buffer.fill;
    }
    at.push_back(words);
  }
  uint64_t args[kMostArguments] = {};
  for (size_t i = 0; i < kArgumentsCount; ++i) {
    const Argument& argument = kArguments[i];
    args[i] =
        argument.buffer < 0 ? argument.value : reinterpret_cast<uint64_t>(at[argument.buffer]);
  }
  void* kernel = emulator_new(1);  // on a thread of its own, whose stack holds on-chip memory
  if (kernel == nullptr || emulator_start(kernel, args) != 0) {
    std::printf("FAIL: no thread for the kernel\n");
    return 1;
  }
  while (emulator_wait(kernel, 1000000) == 0) {
  }
  emulator_delete(kernel);

  size_t different = 0;
  for (size_t i = 0; i < kBuffersCount; ++i) {
    if (kBuffers[i].after != nullptr) different += Differences(kBuffers[i], at[i]);
  }
  std::printf(different == 0 ? "PASS\n" : "FAIL\n");
  return different == 0 ? 0 : 1;
}
