// A fake of Vitis's <hls_stream.h> for g++ builds with -DLLAMA_STREAMS. Processes run one after the
// other, so a stream is unbounded. Reading an empty stream is an error: on fabric it would hang.
// This checks the order and number of words, not the depths. A log records the order in which
// streams are written and read, because processes do not wait for each other here.
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
  int streams = 0;  // streams made since the log started
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
  // Stored as bytes: C++14's allocators do not honour the alignment of a beat.
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

// Returns the length of the log of writes (reads = 0) or reads (1), and stops logging.
__attribute__((used, visibility("default"))) inline int stream_log(int reads, const int** ids) {
  hls::TheStreamLog().on = false;
  const std::vector<int>& log = reads ? hls::TheStreamLog().reads : hls::TheStreamLog().writes;
  *ids = log.data();
  return static_cast<int>(log.size());
}
}
