// What the shared library shows to its loader.
#pragma once

#if defined(_WIN32)
#define LLAMA_EXPORT extern "C" __declspec(dllexport)
#else
#define LLAMA_EXPORT extern "C" __attribute__((visibility("default")))
#endif
