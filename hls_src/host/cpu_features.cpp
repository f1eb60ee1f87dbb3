// What this processor and its system can run, where the system itself does not list it: Windows
// and macOS on x86-64. Read by llama_pynq/emulation/cpu.py from the payload that needs nothing.
#include "host/library.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#include <cstring>

namespace {

// Registers that the system saves when it changes threads (XCR0): without them the instructions
// fault although the processor has them.
enum State : uint32_t { kNone = 0, kYmm = 0x6, kZmm = 0xE6 };

struct Feature {
  uint32_t leaf, subleaf;
  int output;  // 0 to 3: EAX, EBX, ECX, EDX
  int bit;
  State state;
  const char* name;  // as in Linux's /proc/cpuinfo
};

// Bits: Intel's Software Developer's Manual, volume 2, CPUID; abm: AMD's manual, volume 3.
constexpr Feature kFeatures[] = {
    {1, 0, 2, 0, kNone, "pni"},      {1, 0, 2, 9, kNone, "ssse3"},
    {1, 0, 2, 12, kYmm, "fma"},      {1, 0, 2, 19, kNone, "sse4_1"},
    {1, 0, 2, 20, kNone, "sse4_2"},  {1, 0, 2, 22, kNone, "movbe"},
    {1, 0, 2, 23, kNone, "popcnt"},  {1, 0, 2, 28, kYmm, "avx"},
    {1, 0, 2, 29, kYmm, "f16c"},     {7, 0, 1, 3, kNone, "bmi1"},
    {7, 0, 1, 5, kYmm, "avx2"},      {7, 0, 1, 8, kNone, "bmi2"},
    {7, 0, 1, 16, kZmm, "avx512f"},  {7, 0, 1, 17, kZmm, "avx512dq"},
    {7, 0, 1, 28, kZmm, "avx512cd"}, {7, 0, 1, 30, kZmm, "avx512bw"},
    {7, 0, 1, 31, kZmm, "avx512vl"}, {7, 0, 2, 11, kZmm, "avx512_vnni"},
    {7, 1, 0, 4, kYmm, "avx_vnni"},  {0x80000001, 0, 2, 5, kNone, "abm"},
};

uint32_t SavedState() {
  uint32_t out[4] = {};
  __cpuid_count(1, 0, out[0], out[1], out[2], out[3]);
  if ((out[2] >> 27 & 1) == 0) return 0;  // no OSXSAVE: the system saves none
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool Has(const Feature& feature, uint32_t saved) {
  if ((saved & feature.state) != feature.state) return false;
  if (__get_cpuid_max(feature.leaf & 0x80000000, nullptr) < feature.leaf) return false;
  uint32_t out[4] = {};
  if (feature.subleaf != 0) {  // leaf 7 tells in EAX how many there are
    __cpuid_count(feature.leaf, 0, out[0], out[1], out[2], out[3]);
    if (out[0] < feature.subleaf) return false;
  }
  __cpuid_count(feature.leaf, feature.subleaf, out[0], out[1], out[2], out[3]);
  return (out[feature.output] >> feature.bit & 1) != 0;
}

}  // namespace

// Writes the names, each followed by a space, and returns their length; 0 if they do not fit.
LLAMA_EXPORT int emulator_cpu_features(char* text, int capacity) {
  const uint32_t saved = SavedState();
  int length = 0;
  for (const Feature& feature : kFeatures) {
    if (!Has(feature, saved)) continue;
    const int size = static_cast<int>(std::strlen(feature.name));
    if (length + size + 1 > capacity) return 0;
    std::memcpy(text + length, feature.name, size);
    text[length + size] = ' ';
    length += size + 1;
  }
  return length;
}
#else
LLAMA_EXPORT int emulator_cpu_features(char*, int) {
  return 0;
}
#endif
