// What the emulator's Python side and its kernels agree on; mirrored field by field in native.py.
#pragma once
#include <cstdint>

// A feature map, height by width by channels, in bytes of value + 128. Around it lies a border as wide as any reader's
// padding, which holds zeros (128), and behind it some bytes that may be read but do not count.
struct Tensor {
    uint8_t *at;  // channel 0 of pixel (0, 0) of image 0
    int64_t image, row, pixel;  // steps in bytes; images may share a place (0)
};

// Bit flips of one layer at one site, sorted by (image, output, step).
struct Events {
    const int64_t *image, *output;
    const int32_t *step;
    const int8_t *bit;
    int64_t count;
};

enum Kind : int64_t {
    CONVOLUTION = 0,  // groups of any size
    DEPTHWISE = 1,    // one channel in, one out, in each group
    PAIR = 2,         // one channel of each of two tensors in, one out: an addition
};

// Channels `to` to `to + count - 1` of a layer's input are channels `from`, ... of a source.
struct Run {
    int64_t source, from, to, count;
};

// One two-operand adder of the lanes' trees whose operand bits may be late, and whose output bits may be stuck.
struct Adder {
    int64_t groups;         // of output bits with equal masks; 0: in time
    const uint32_t *masks;  // [block][group][a, s, outputs][16]
    const uint32_t *sign;   // [block][16]: the highest bit; none: in time, and nothing is stuck
    const uint32_t *keep, *set;  // [block][16]: the register takes `value & keep | set`; `keep` has no bits above it
};

// Outputs of a layer whose lanes miss the clock with some operand bits, or have stuck bits. They are in blocks of 16
// that read the same planes.
struct Late {
    int64_t partial;  // the layer has others, which are computed as ever
    Tensor x;  // the planes that steps read; with runs, it is filled from the sources first
    const Tensor *sources;
    const Run *runs;
    int64_t run_count, blocks;
    const int64_t *channel, *count;  // first output of each block, and how many; 0: they do not follow each other
    const int32_t *rows;             // [block][16]: the output, or -1
    const int32_t *place;            // of each output: its place in `rows`, or -1
    const int64_t *plane;            // the first plane that each reads, in bytes
    const int32_t *offsets;          // of each quad, in the order of steps
    const int8_t *weights;           // as `ordered`
    const int32_t *sums;             // [block][step][16]: -128 times the weights of a step
    const int32_t *start, *shift, *added;  // [block][16]
    int64_t groups;                  // of the accumulators; 0: in time
    const uint32_t *masks;           // [block][group][a, s, outputs, bias, select][16]
    const uint32_t *keep, *set;      // of the accumulators, as an adder's; none: nothing is stuck
    const Adder *adders;             // of the tree, level by level; none: all in time, and nothing is stuck
};

struct Layer {
    int64_t kind;
    int64_t batched;  // all images at once, instead of image by image
    // Input. With runs, `x` is filled from the sources first.
    Tensor x, second;
    const Tensor *sources;
    const Run *runs;
    int64_t run_count, in_h, in_w;
    // Convolution.
    int64_t channels, outputs, groups, out_h, out_w, kernel_h, kernel_w, stride_y, stride_x, pad_y, pad_x;
    const int32_t *offsets;  // of each quad of input channels from a window's corner
    int64_t quads;
    const int8_t *weights;   // packed: see pack()
    const int32_t *start;    // accumulators' first value, with the features' + 128 taken off
    const int32_t *shift, *added;
    int64_t low, upper, pipecnn;
    int64_t stored;          // channels that are pooled: those that only fill up a word of memory, too
    Tensor conv;
    // Max pooling; kernel 0: none, and `out` is `conv`.
    int64_t pool_kernel, pool_stride, pool_pad, pool_h, pool_w;
    Tensor out;
    // Faults.
    const int8_t *plain;     // OIHW
    const int32_t *bias;     // accumulators' first value
    const int32_t *slots;    // [planes][vec]: input channel, or -1
    const int32_t *first;    // first plane of each output group
    int64_t planes, span, lanes, vec, in_order;
    const int32_t *ordered_offsets;  // as `offsets`, in the order of steps
    const int8_t *ordered;           // as `weights`, in the order of steps
    const int32_t *ordered_sums;     // [block][step][16]: 128 times the weights of the steps up to this one
    const int8_t *rows;              // [output][step][vec]: plain weights in the order of steps, where it is in_order
    const Late *late;
    Events mac, feature;
};

extern "C" {
// Whether this processor has the instructions.
int supported_portable();
int supported_avx2();
int supported_vnni();
}
