// How keys and values lie in memory, and which rows read them together.
//
// Kv head h belongs to port h % kKvPorts, and is the (h / kKvPorts)th there. A port's memory is
// [slot][layer][head of the port][position], one record each:
//   float32   key, value; each padded with zeros to whole beats
//   int8      a beat with the two float32 scales first; then key, value as int8. Byte k of a
//             beat's word i is its value k * kKvBeatWords + i
// A head's positions follow one another: a block of them is one burst.
#pragma once

#include "tile.h"

namespace kernel {

// The cache's layout; false if a port's last beat would have a number beyond an int.
inline bool PlaceKv(bool int8, Shape& s) {
  const int bytes = s.head_stride * (int8 ? 1 : 4);
  s.kv_int8 = int8;
  s.kv_scale_beats = int8 ? 1 : 0;
  s.kv_half_beats = (bytes + kKvBeatBytes - 1) / kKvBeatBytes;
  s.kv_record_beats = s.kv_scale_beats + 2 * s.kv_half_beats;
  const int heads = (s.n_kv_heads + kKvPorts - 1) / kKvPorts;
  const int64_t layer = static_cast<int64_t>(heads) * s.seq_len * s.kv_record_beats;
  const bool fits = layer * s.n_layers * s.slots < (int64_t{1} << 31);
  s.kv_head_beats = fits ? s.seq_len * s.kv_record_beats : 0;
  s.kv_layer_beats = heads * s.kv_head_beats;
  s.kv_slot_beats = s.n_layers * s.kv_layer_beats;
  return fits;
}

// First beat of a record, in the memory of its head's port.
inline int KvBeatOf(const Shape& s, int slot, int layer, int kv_head, int position) {
  return slot * s.kv_slot_beats + layer * s.kv_layer_beats + kv_head / kKvPorts * s.kv_head_beats +
         position * s.kv_record_beats;
}

// Rows of one sequence that follow one another in a call: they share every block they read.
struct Team {
  int first, rows;
  int slot;
  int last;  // highest position
};

// What a team reads of a kv head: beats of a port that follow one another.
struct KvRun {
  int port, first, beats;
};

inline KvRun RunOf(const Shape& s, const Team& team, int layer, int kv_head) {
  KvRun run;
  run.port = kv_head % kKvPorts;
  run.first = KvBeatOf(s, team.slot, layer, kv_head, 0);
  run.beats = (team.last + 1) * s.kv_record_beats;
  return run;
}

// Query heads of a kv head that a team's rows take at once, how often that is, and the rows.
inline int TeamHeads(const Shape& s) {
  const int heads = s.n_heads / s.n_kv_heads;
  return heads < kQueries ? heads : kQueries;
}
inline int TeamChunks(const Shape& s) {
  return (s.n_heads / s.n_kv_heads + kQueries - 1) / kQueries;
}
inline int TeamRows(const Shape& s) {
  return kQueries / TeamHeads(s);
}

// Positions of a block that are in use.
inline int BlockPositions(const Team& team, int block) {
  const int left = team.last + 1 - block * kBlock;
  return left < kBlock ? left : kBlock;
}

}  // namespace kernel
