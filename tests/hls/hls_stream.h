// A stand-in for Vitis's <hls_stream.h>, for g++ builds with -DLLAMA_STREAMS: processes
// run one after the other, so a stream has no bound here; reading an empty one is an error, as it
// would hang on fabric. What is checked is the order and the number of words, not the depths; and
// since processes do not wait for one another here, a log says in which order which streams were
// written and read.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

namespace hls {

struct StreamLog {
  bool on = false;
  int streams = 0;  // made since it is on
  std::vector<int> writes, reads;
};

inline StreamLog& TheStreamLog() {
  static StreamLog log;
  return log;
}

template <typename T, int kDepth = 0>
class stream {
 public:
  stream() : id_(TheStreamLog().streams++) {}

  void write(const T& value) {
    if (TheStreamLog().on) TheStreamLog().writes.push_back(id_);
    Bytes bytes;
    std::memcpy(bytes.data(), &value, sizeof(T));
    values_.push_back(bytes);
  }

  T read() {
    if (values_.empty()) {
      std::fprintf(stderr, "read of an empty stream: fabric would hang here\n");
      std::abort();
    }
    if (TheStreamLog().on) TheStreamLog().reads.push_back(id_);
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
  const int id_;
};

}  // namespace hls

extern "C" {
__attribute__((used, visibility("default"))) inline void stream_log_start() {
  hls::TheStreamLog() = hls::StreamLog();
  hls::TheStreamLog().on = true;
}

// The log of what was written (0) or read (1), and its length.
__attribute__((used, visibility("default"))) inline int stream_log(int reads, const int** ids) {
  hls::TheStreamLog().on = false;
  const std::vector<int>& log = reads ? hls::TheStreamLog().reads : hls::TheStreamLog().writes;
  *ids = log.data();
  return static_cast<int>(log.size());
}
}
