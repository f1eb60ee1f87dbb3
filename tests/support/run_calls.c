// Runs a kernel library in a process of its own: of another system under Wine or QEMU, or with a
// sanitizer. foreign_kernel.py sends the calls.
//
//   run_calls LIBRARY [THREADS [within]]
//
// With "within" the library checks each call against the sizes of its buffers; the buffers of a
// call that it refuses come back unchanged.
//
// writes the length and the text of emulator_cpu_features(). For each call it then reads the number
// of buffers, the size of each, the 128 argument words (bit 63 marks the index of a buffer), and
// the buffers' contents. It replies with the contents after the call. All integers have 64 bits.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <windows.h>
#else
#include <dlfcn.h>
#endif

enum { kPage = 4096, kWords = 128, kMaxBuffers = 128 };

static void* Find(const char* library, const char* name) {
#if defined(_WIN32)
  const HMODULE loaded = LoadLibraryA(library);
  return loaded ? (void*)GetProcAddress(loaded, name) : NULL;
#else
  void* loaded = dlopen(library, RTLD_NOW);
  return loaded ? dlsym(loaded, name) : NULL;
#endif
}

// Nothing of ours lies behind a buffer: a sanitizer sees the first byte past its end.
static char* New(uint64_t n) {
#if defined(_WIN32)
  return _aligned_malloc(n, kPage);
#else
  void* block = NULL;
  return posix_memalign(&block, kPage, n) == 0 ? block : NULL;
#endif
}

static void Free(char* block) {
#if defined(_WIN32)
  _aligned_free(block);
#else
  free(block);
#endif
}

static int Read(void* to, uint64_t n) {
  return fread(to, 1, n, stdin) == n;
}

static void Write(const void* from, uint64_t n) {
  fwrite(from, 1, n, stdout);
}

int main(int argc, char** argv) {
#if defined(_WIN32)
  _setmode(_fileno(stdin), _O_BINARY);
  _setmode(_fileno(stdout), _O_BINARY);
#endif
  const char* library = argc > 1 ? argv[1] : "";
  void* (*make)(int) = Find(library, "emulator_new");
  int (*start)(void*, const uint64_t*) = Find(library, "emulator_start");
  int (*wait)(void*, int) = Find(library, "emulator_wait");
  void (*leave)(void*) = Find(library, "emulator_delete");
  int (*features)(char*, int) = Find(library, "emulator_cpu_features");
  if (!make || !start || !wait || !leave || !features) {
#if defined(_WIN32)
    fprintf(stderr, "cannot load %s\n", library);
#else
    fprintf(stderr, "cannot load %s: %s\n", library, dlerror());
#endif
    return 1;
  }
  static char text[4096];
  const uint64_t length = (uint64_t)features(text, sizeof text);
  Write(&length, sizeof length);
  Write(text, length);
  fflush(stdout);

  int (*start_within)(void*, const uint64_t*, const uint64_t*, uint64_t*) = NULL;
  if (argc > 3) {
    start_within = Find(library, "emulator_start_within");
    if (!start_within) {
      fprintf(stderr, "%s checks no sizes\n", library);
      return 1;
    }
  }
  void* emulator = make(argc > 2 ? atoi(argv[2]) : 2);
  uint64_t n;
  while (Read(&n, sizeof n) && n <= kMaxBuffers) {
    uint64_t sizes[kMaxBuffers], words[kWords], behind[kWords] = {0}, needed;
    char* buffers[kMaxBuffers];
    Read(sizes, 8 * n);
    Read(words, sizeof words);
    for (uint64_t i = 0; i < n; ++i) {
      buffers[i] = New(sizes[i]);
      Read(buffers[i], sizes[i]);
    }
    for (int i = 0; i < kWords; ++i) {
      if (words[i] >> 63) {
        behind[i] = sizes[words[i] & (kMaxBuffers - 1)];
        words[i] = (uintptr_t)buffers[words[i] & (kMaxBuffers - 1)];
      }
    }
    const int started =
        start_within ? start_within(emulator, words, behind, &needed) : start(emulator, words);
    if (started < 0) return 2;
    while (started == 0 && !wait(emulator, 1000000)) {
    }
    for (uint64_t i = 0; i < n; ++i) {
      Write(buffers[i], sizes[i]);
      Free(buffers[i]);
    }
    fflush(stdout);
  }
  leave(emulator);
  return 0;
}
