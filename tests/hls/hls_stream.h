// A stand-in for Vitis's <hls_stream.h>, for g++ builds with -DLLAMA_STREAMS: processes
// run one after the other, so a stream has no bound here; reading an empty one is an error, as it
// would hang on fabric. What is checked is the order and the number of words, not the depths.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

namespace hls {

template <typename T, int kDepth = 0>
class stream {
 public:
  void write(const T& value) {
    Bytes bytes;
    std::memcpy(bytes.data(), &value, sizeof(T));
    values_.push_back(bytes);
  }

  T read() {
    if (values_.empty()) {
      std::fprintf(stderr, "read of an empty stream: fabric would hang here\n");
      std::abort();
    }
    T value;
    std::memcpy(&value, values_.front().data(), sizeof(T));
    values_.pop_front();
    return value;
  }

  bool read_nb(T& value) {
    if (values_.empty()) return false;
    value = read();
    return true;
  }

  ~stream() {
    if (!values_.empty()) {
      std::fprintf(stderr, "%zu words left in a stream: fabric would hang here\n", values_.size());
      std::abort();
    }
  }

 private:
  // Bytes: C++14's allocators do not honour the alignment of a beat.
  typedef std::array<unsigned char, sizeof(T)> Bytes;
  std::deque<Bytes> values_;
};

}  // namespace hls
