// How a weight matrix lies in memory, and how its words reach an engine.
//
// A tile is kTileRows output rows. It is stored group by group: the rows' values of one group,
// one row after the other; then kTileRows float32 scales; then the same rows' next group. int8 is
// stored as q + 128; int4 as q + 8, in groups of 64, two to a byte: the group's first half in
// the low nibbles. A last group of int8 whose second half is padding is stored without it, two
// rows to a word, as a group of 32 is. Tile i of a matrix lies in channel i % kChannels, so the
// channels are read side by side: one tile of each is a wave.
//
// Each channel holds, in this order:
//   per layer   [channel 0: attention norm]  Q,K,V  Wo  [channel 0: ffn norm]  W1|W3  W2
//   at the end  [channel 0: final norm]  classifier  [embedding, where it is not tied]
// W1's and W3's tiles alternate.
#pragma once

#include "contract.h"
#include "float_math.h"

namespace kernel {

struct Shape {
  int dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, group_size;
  bool tied;
  int slots;
  int head_size, kv_dim, head_stride;  // head_stride: head_size padded to kReduceLanes
  int head_units;                      // head_size / kReduceLanes; 0 where it is not whole
  int dim_groups, hidden_groups;
  int row_bytes;  // of one row's group of weights
  bool int4;
  bool kv_int8;
  // Of the KV cache, in beats: parts of a position's record, and from one to the next.
  int kv_scale_beats, kv_half_beats, kv_record_beats;
  int kv_head_beats, kv_layer_beats, kv_slot_beats;
};

// How a group of weights is stored: 64 int8, 32 int8, or 64 int4.
struct Format {
  int group_size;
  int row_bytes;  // of one row's group: 64 or 32
  bool int4;
};

// Where an engine is in its tiles: the beat of a word of a group, `count` groups having gone before
// in whatever wave; `half`: the group is stored without its second half.
struct BeatAt {
  int wave, group, count, word, beat;
  bool half;
};

// How far an engine goes: words of a group, and of a last one that is stored as half.
struct GroupLoop {
  int groups, words, tail_words;
  bool half_tail;
};

struct Matrix {
  int rows;        // output rows in use
  int groups;      // input groups
  bool half_tail;  // the last of them is stored without its second half
  int waves;       // tiles per channel
  int first_word;  // of wave 0, from the start of its layer or of the tail, in channels > 0
};

struct Layout {
  Matrix qkv, attention_out, gate_up, down, classifier, embedding;
  int norm_words;   // a norm vector, in channel 0 only
  int layer_words;  // one layer, without its norms
};

// Of one group of a tile; `two_rows`: a word holds a group of two of them.
inline int GroupWords(bool two_rows) {
  return (two_rows ? kTileRows / 2 : kTileRows) + kScaleWords;
}

inline int TileWords(const Matrix& m, int row_bytes) {
  const int words = m.groups * GroupWords(row_bytes != kWordBytes);
  return m.half_tail ? words - kTileRows / 2 : words;
}

inline int MatrixWords(const Matrix& m, int row_bytes) {
  return m.waves * TileWords(m, row_bytes);
}

// A matrix of `columns` inputs.
inline Matrix PlaceMatrix(int rows, int columns, int group_size, int row_bytes, int& next_word) {
  Matrix m;
  m.rows = rows;
  m.groups = RoundUp(columns, group_size) / group_size;
  m.half_tail = row_bytes == kWordBytes && (columns - 1) % kMaxGroup < kMinGroup;
  m.waves = (rows + kWaveRows - 1) / kWaveRows;
  m.first_word = next_word;
  next_word += MatrixWords(m, row_bytes);
  return m;
}

inline Layout PlanLayout(const Shape& s) {
  Layout plan;
  const int bytes = s.row_bytes, size = s.group_size;
  // Whole groups of hidden units leave a pair of W1 and W3 tiles.
  const int hidden_units = RoundUp(s.hidden_groups * s.group_size, kTileRows);
  plan.norm_words = s.dim_groups * s.group_size * 4 / kWordBytes;
  int word = 0;
  plan.qkv = PlaceMatrix(s.dim + 2 * s.kv_dim, s.dim, size, bytes, word);
  plan.attention_out = PlaceMatrix(s.dim, s.dim, size, bytes, word);
  plan.gate_up = PlaceMatrix(2 * hidden_units, s.dim, size, bytes, word);
  plan.down = PlaceMatrix(s.dim, s.hidden_dim, size, bytes, word);
  plan.layer_words = word;
  word = 0;
  plan.classifier = PlaceMatrix(s.vocab_size, s.dim, size, bytes, word);
  plan.embedding = plan.classifier;
  if (!s.tied) plan.embedding = PlaceMatrix(s.vocab_size, s.dim, size, bytes, word);
  return plan;
}

// Where things begin in one channel. Only channel 0 carries the norm vectors.
inline int LayerBase(const Layout& plan, int channel, int layer) {
  return layer * (plan.layer_words + (channel == 0 ? 2 * plan.norm_words : 0));
}
inline int NormsBefore(const Layout& plan, int channel, int norms) {
  return channel == 0 ? norms * plan.norm_words : 0;
}
inline int TailBase(const Layout& plan, const Shape& s, int channel) {
  return LayerBase(plan, channel, s.n_layers) + NormsBefore(plan, channel, 1);
}

// The two words of one row and group: its values, and the scales of its tile.
struct RowWords {
  int channel, values, scales;
  int offset;       // of the row's values in their word, in bytes
  int scale_index;  // of the row's scale in its word
};

inline RowWords FindRow(const Matrix& m, int base, int row, int group, int row_bytes) {
  const int tile = row / kTileRows;
  const int row_in_tile = row % kTileRows;
  const bool narrow = row_bytes != kWordBytes;
  const bool two_rows = narrow || (m.half_tail && group + 1 == m.groups);
  const int first = base + m.first_word + (tile / kChannels) * TileWords(m, row_bytes) +
                    group * GroupWords(narrow);
  RowWords at;
  at.channel = tile % kChannels;
  at.values = first + (two_rows ? row_in_tile / 2 : row_in_tile);
  at.offset = two_rows ? row_in_tile % 2 * (kWordBytes / 2) : 0;
  at.scales = first + (two_rows ? kTileRows / 2 : kTileRows) + row_in_tile * 4 / kWordBytes;
  at.scale_index = row_in_tile % (kWordBytes / 4);
  return at;
}

inline float BytesFloat(const uint8_t* bytes, int index) {
#pragma HLS INLINE
  const int i = 4 * index;
  const uint32_t bits = static_cast<uint32_t>(bytes[i]) | static_cast<uint32_t>(bytes[i + 1]) << 8 |
                        static_cast<uint32_t>(bytes[i + 2]) << 16 |
                        static_cast<uint32_t>(bytes[i + 3]) << 24;
  return FloatOf(bits);
}

inline float WordFloat(const Word& word, int index) {
#pragma HLS INLINE
  return BytesFloat(word.b, index);
}

}  // namespace kernel
