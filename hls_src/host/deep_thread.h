// A thread whose stack holds the kernel's on-chip memory: std::thread has no say in its size.
#pragma once

#include <cstddef>

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace kernel {

class DeepThread {
 public:
  // Runs body(context) on a stack of that many bytes. Pages come on use.
  bool Start(void (*body)(void*), void* context, size_t stack_bytes) {
    body_ = body;
    context_ = context;
#if defined(_WIN32)
    const unsigned reserve = STACK_SIZE_PARAM_IS_A_RESERVATION;
    handle_ = reinterpret_cast<HANDLE>(
        _beginthreadex(nullptr, static_cast<unsigned>(stack_bytes), Main, this, reserve, nullptr));
    started_ = handle_ != nullptr;
#else
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_bytes);
    started_ = pthread_create(&handle_, &attributes, Main, this) == 0;
    pthread_attr_destroy(&attributes);
#endif
    return started_;
  }

  void Join() {
    if (!started_) return;
#if defined(_WIN32)
    WaitForSingleObject(handle_, INFINITE);
    CloseHandle(handle_);
#else
    pthread_join(handle_, nullptr);
#endif
    started_ = false;
  }

 private:
#if defined(_WIN32)
  static unsigned __stdcall Main(void* self) {
    static_cast<DeepThread*>(self)->body_(static_cast<DeepThread*>(self)->context_);
    return 0;
  }
  HANDLE handle_ = nullptr;
#else
  static void* Main(void* self) {
    static_cast<DeepThread*>(self)->body_(static_cast<DeepThread*>(self)->context_);
    return nullptr;
  }
  pthread_t handle_;
#endif
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  bool started_ = false;
};

}  // namespace kernel
